"""Which devices fit what is wanted, and which of those to take: pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from executor.gpus.devices import Device, Machine
from policies.decision import Decision, Request
from policies.units import format_bytes

_SPARE = 512 << 20  # bytes of a shared device that the driver and the contexts take for themselves


@dataclass(frozen=True)
class Wanted:
    """What an experiment needs of GPUs."""

    count: int
    memory: int | None = None
    """Bytes that each must have at least; None: any will do."""
    share: int | None = None
    """Bytes that it takes of a device which others may be on, each with a share of its own; None: it wants all for itself."""
    busy: int = 0
    """Bytes held by processes that nobody lent the device to, above which it is passed over."""
    whole: bool = False
    """No slices: gVisor passes none on."""
    without: frozenset[str] = frozenset()
    """Devices that cannot be passed on."""

    @classmethod
    def of(cls, decision: Decision, request: Request, gvisor: bool, without: Iterable[str] = ()) -> Self:
        """What a decision gives, in a container of gVisor's or not."""
        limits, shared = decision.limits, decision.gpu.sharing == "shared"
        share = limits.gpu_memory if shared else None
        return cls(limits.gpus, request.limits.gpu_memory, share, decision.gpu.busy, gvisor, frozenset(without))


@dataclass(frozen=True)
class Load:
    """What is on a device now."""

    outsiders: int = 0
    """Bytes held by processes that are no lease's; they are not ours to end."""
    exclusive: bool = False
    """Somebody else's lease has all of it."""
    shares: tuple[int, ...] = ()
    """Bytes that leases which share it may take."""
    problem: str = ""

    @property
    def lent(self) -> bool:
        """Whether somebody has it, or a part of it, who will give it back."""
        return self.exclusive or bool(self.shares)

    def taken_by_others(self, wanted: Wanted) -> bool:
        """Whether those are on it who did not ask, or it is out of order."""
        return bool(self.problem) or self.outsiders > wanted.busy


def fitting(machine: Machine, wanted: Wanted) -> list[Device]:
    """The devices that could be given if all were free."""
    found = [
        device
        for device in machine.usable
        if device.uuid not in wanted.without
        and (wanted.memory is None or device.memory >= wanted.memory)
        and (wanted.share is None or device.memory)  # of unknown size, it cannot be shared out
    ]
    # Slices are for one process each: CUDA shows a process one of them, and NCCL joins none.
    return [d for d in found if d.parent is None] if wanted.count > 1 or wanted.whole else found


def never(machine: Machine, wanted: Wanted) -> str | None:
    """Why this machine cannot give what is wanted however long one waits; None if it can."""
    if machine.problem:
        return machine.problem
    if len(fitting(machine, wanted)) >= wanted.count:
        return None
    there = machine.usable
    broken = [f"{device.uuid}: {device.problem}" for device in machine.devices if device.problem]
    if not there:
        idle = [device for device in machine.devices if device.sliced]
        return "; ".join(broken) or f"{len(idle)} GPU(s) are in MIG mode and have no slices (nvidia-smi mig -cgi)"
    size = f" with {format_bytes(wanted.memory)} of memory each" if wanted.memory is not None else ""
    largest = max(device.memory for device in there)
    held = f"this machine has {len(there)}, the largest of {largest / (1 << 30):.1f} GiB"
    slices = ", and these must be whole GPUs" if any(d.parent for d in there) else ""
    return "; ".join([f"{wanted.count}{size} not available: {held}{slices}", *broken])


def why_not(device: Device, load: Load, wanted: Wanted) -> str | None:
    """Why a device cannot be given now; None if it can."""
    if load.problem:
        return load.problem
    if load.exclusive or (load.shares and wanted.share is None):
        return "lent"
    if load.outsiders > wanted.busy:
        return f"others hold {load.outsiders >> 20} MiB on it"
    if load.shares and sum(load.shares) + share_of(device, wanted) + _SPARE > device.memory:
        return "its memory is shared out"
    return None


def share_of(device: Device, wanted: Wanted) -> int:
    """Bytes of the device that would be taken."""
    return device.memory if wanted.share is None else min(wanted.share, device.memory)


def pick(devices: Sequence[Device], loads: Mapping[str, Load], wanted: Wanted) -> list[Device] | None:
    """`wanted.count` of the available devices, or None where there are fewer.

    The smallest that fit, so that large ones stay for those who need them; when sharing, devices that are shared already;
    several of one kind where that can be.
    """
    if len(devices) < wanted.count:
        return None

    def order(device: Device) -> tuple[int, int, str]:
        return (-len(loads.get(device.uuid, Load()).shares), device.memory, device.uuid)

    kinds: dict[str, list[Device]] = {}
    for device in sorted(devices, key=order):
        kinds.setdefault(device.name, []).append(device)
    groups = [group for group in kinds.values() if len(group) >= wanted.count]
    first = min(groups, key=lambda group: order(group[0])) if groups else sorted(devices, key=order)
    return list(first[: wanted.count])
