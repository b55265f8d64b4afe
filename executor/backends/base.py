"""The protocol between the executor and whatever makes containers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from executor.channel import EMPTIED, LOAD, Connection
from executor.experiment import ImageRef
from executor.gpus.devices import Device, Machine
from executor.observe import Cgroup
from executor.ownership import Owner
from policies.decision import Capabilities
from policies.model import Isolation, Limits
from sandbox_images.lock import Flavour

EXPERIMENT_ID = 65534
"""uid and gid of the experiment inside every container."""
KEPT_CAPABILITIES = ("SETUID", "SETGID", "KILL")
"""What PID 1 keeps: to become the experiment's user, and to end what that user started."""
LIBRARY_MOUNT = "/run/labsandbox"
"""Where PID 1 puts the `lab` library; the experiment can read it and not write it."""
LIBRARY_BYTES = 8 << 20
PACKAGES_MOUNT = "/run/packages"
"""Where an experiment's own packages are unpacked, by the experiment's user."""
AHEAD_SHARES = 64
"""CPU shares (cpu.shares; the usual 1024) of a container that is made ahead, beside runs."""
GVISOR_TASKS = 192
"""Host processes and threads that gVisor needs for itself, on top of one for each thread of the experiment."""

_PACKAGE_FILES = 1 << 17
GVISOR_FILES = "gVisor does not count the inodes of a tmpfs (its files are in its memory, which is limited)"

Progress = Callable[[str], None]
"""Told, in a few words, of steps that take long."""


@dataclass(frozen=True)
class ContainerSpec:
    """Everything that a backend needs to know to make one container."""

    execution_id: str
    limits: Limits
    owner: Owner
    image: ImageRef
    isolation: Isolation = "kernel"
    unheld: frozenset[str] = frozenset()
    """Limits that this backend was found not to hold; the host watches these instead."""
    wheels_bytes: int = 0
    """Size of the wheels that will be sent in."""
    packages_bytes: int = 0
    """Size of what they unpack to; 0 when there are none."""
    gpus: tuple[Device, ...] = ()
    """The devices that were lent for it."""
    driver: str = ""
    """Version of the NVIDIA driver, where there are any."""
    ahead: bool = False
    """It is made before its run: until then, what it does has next to no claim to the processors (`Cgroup.full_weight`)."""

    def tmpfs(self) -> Mapping[str, str]:
        """Mount point → tmpfs options. All are charged to the memory limit."""
        mounts = {
            "/workspace": self.sized(self.limits.workspace, "1777"),
            "/tmp": self.sized(self.limits.tmp, "1777"),
            LIBRARY_MOUNT: self.sized(LIBRARY_BYTES + self.wheels_bytes, "755"),
        }
        if self.packages_bytes:
            mounts[PACKAGES_MOUNT] = self.sized(self.packages_bytes, "1777", inodes=_PACKAGE_FILES)
        return mounts

    def sized(self, size: int, mode: str, execution: str = "exec", inodes: int | None = None) -> str:
        """tmpfs options for `size` bytes; without a number of inodes where the backend does not take one."""
        count = max(self.limits.files, inodes or 0)
        limited = "" if "files" in self.unheld else f"nr_inodes={count},"
        return f"rw,nosuid,nodev,{execution},size={size},{limited}mode={mode}"


@dataclass(frozen=True)
class Passed:
    """How devices were put into a container."""

    way: str = ""
    """In words; "" where there are none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the experiment's environment needs to find their libraries."""
    nodes: frozenset[str] = frozenset()
    """`major:minor` of the device nodes that it may have for them."""


def pid1(python: str, emptied: bool = False) -> list[str]:
    """The command of PID 1: isolated, and without site, so that nothing in the image runs before the runner.

    emptied: starts itself anew without what is in its environment.
    """
    return [python, "-I", "-S", "-c", EMPTIED if emptied else LOAD]


class Container(Protocol):
    """One created container. The executor calls `destroy` whatever happens, and may call it twice."""

    id: str
    passed: Passed

    def start(self) -> Connection:
        """Starts PID 1 and returns its standard streams. Raises InfrastructureError."""

    def pid(self) -> int | None:
        """PID 1's process id on this host; None when it is not on this host or gone."""

    def group(self) -> Cgroup | None:
        """Its control group on this host; None when it is not on this host or gone."""

    def recorded(self) -> Mapping[str, float]:
        """The limits as the engine's own record states them; empty where there is no such record."""

    def oom_killed(self) -> bool:
        """Whether the engine recorded that memory ran out in this container."""

    def kill(self) -> None:
        """Ends every process in it, at once. Does nothing when it is gone."""

    def destroy(self) -> None:
        """Removes every trace of it from the host."""


@dataclass(frozen=True)
class Found:
    """A container of ours that is on the host, whoever's it is."""

    execution_id: str
    container: Container
    owner: Owner
    running: bool


class Backend(Protocol):
    """Makes containers in one way, under one runtime."""

    name: str
    runtime: str
    flavour: Flavour
    """The set of packages that its containers have."""

    def capabilities(self) -> Capabilities:
        """What it can enforce here. Raises SandboxUnavailable when it cannot work at all."""

    def recipe(self) -> dict[str, str | None]:
        """What another process needs to make such a backend: its backend, runtime, image and flavour, and which engine it is."""

    def gpu_problems(self, machine: Machine) -> dict[str, str]:
        """UUID → why this backend cannot pass that device into a container, of the machine's usable ones; it can the others."""

    def prepare(self, progress: Progress) -> ImageRef:
        """Makes sure that the image or environment is there. Raises SandboxUnavailable."""

    def create(self, spec: ContainerSpec) -> Container:
        """A new container, not yet running. Raises InfrastructureError; SandboxUnavailable when what it needs is not there."""

    def adopt(
        self, name: str, container_id: str, owner: Owner, descriptors: Sequence[int]
    ) -> tuple[Container, Connection]:
        """A container of this user's that another process started, for `owner` from now on, and its streams, by what
        their `descriptors` gave; these are the container's from then on. Raises InfrastructureError when it is gone, and leaves
        the descriptors alone."""

    def found(self) -> list[Found]:
        """Every container of labsandbox's that this backend can see. Raises SandboxUnavailable."""

    def sweep(self) -> list[str]:
        """Removes this user's containers whose owner is dead or whose deadline passed; returns their execution ids."""
