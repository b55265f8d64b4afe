"""The protocol between the executor and whatever makes containers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from executor.channel import BOOTSTRAP, Connection
from executor.experiment import ImageRef
from executor.ownership import Owner
from policies.decision import Capabilities
from policies.model import Limits

EXPERIMENT_ID = 65534
"""uid and gid of the experiment inside every container."""
KEPT_CAPABILITIES = ("SETUID", "SETGID", "KILL")
"""What PID 1 keeps: to become the experiment's user, and to end what that user started."""
LIBRARY_MOUNT = "/run/labsandbox"
"""Where PID 1 puts the `lab` library; the experiment can read it and not write it."""
LIBRARY_BYTES = 8 << 20

Progress = Callable[[str], None]
"""Told, in a few words, of steps that take long."""


@dataclass(frozen=True)
class ContainerSpec:
    """Everything that a backend needs to know to make one container."""

    execution_id: str
    limits: Limits
    owner: Owner
    image: ImageRef

    def tmpfs(self) -> Mapping[str, str]:
        """Mount point → tmpfs options. All are charged to the memory limit."""
        files = self.limits.files

        def sized(size: int, mode: str) -> str:
            return f"rw,nosuid,nodev,size={size},nr_inodes={files},mode={mode}"

        return {
            "/workspace": sized(self.limits.workspace, "1777"),
            "/tmp": sized(self.limits.tmp, "1777"),
            LIBRARY_MOUNT: sized(LIBRARY_BYTES, "755"),
        }


def pid1(python: str) -> list[str]:
    """The command of PID 1: isolated, and without site, so that nothing in the image runs before the runner."""
    return [python, "-I", "-S", "-c", BOOTSTRAP]


class Container(Protocol):
    """One created container. The executor calls `destroy` whatever happens, and may call it twice."""

    id: str

    def start(self) -> Connection:
        """Starts PID 1 and returns its standard streams. Raises InfrastructureError."""

    def pid(self) -> int | None:
        """PID 1's process id on this host; None when it is not on this host or gone."""

    def recorded(self) -> Mapping[str, float]:
        """The limits as the engine's own record states them; empty where there is no such record."""

    def oom_killed(self) -> bool:
        """Whether the engine recorded that memory ran out in this container."""

    def kill(self) -> None:
        """Ends every process in it, at once. Does nothing when it is gone."""

    def destroy(self) -> None:
        """Removes every trace of it from the host."""


class Backend(Protocol):
    """Makes containers in one way, under one runtime."""

    name: str
    runtime: str

    def capabilities(self) -> Capabilities:
        """What it can enforce here. Raises SandboxUnavailable when it cannot work at all."""

    def prepare(self, progress: Progress) -> ImageRef:
        """Makes sure that the image or environment is there. Raises SandboxUnavailable."""

    def create(self, spec: ContainerSpec) -> Container:
        """A new container, not yet running. Raises InfrastructureError."""

    def sweep(self) -> list[str]:
        """Removes this user's containers whose owner is dead or whose deadline passed; returns their ids."""
