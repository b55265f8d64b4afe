"""Lending GPUs: what the driver finds, what others have, and what is asked for come together here."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from executor.errors import SandboxUnavailable
from executor.gpus.choice import Load, Wanted, fitting, never, pick, share_of, why_not
from executor.gpus.devices import Device, Machine, Reading
from executor.gpus.processes import container_of
from executor.gpus.watch import GpuWatch
from executor.leases import Choose, Claim, Held, Lease, Leases, Queue, Turn, Unwanted, held_by
from policies.state import lock_dir

if TYPE_CHECKING:
    from executor.gpus.nvml import Nvml

_DRIVERS_OWN = 512 << 20
"""Bytes of an idle device that the driver may hold itself."""
_ANY = 1 << 60
"""More bytes than any device has."""

_LEAVING = 5.0
"""Seconds that a destroyed container's processes may take to leave the devices."""
_RESERVED = "kept for who came before"


@dataclass
class Loan:
    """Devices that are one experiment's for now."""

    devices: tuple[Device, ...]
    lease: Lease
    since: float
    """By the monotonic clock."""

    @property
    def shared(self) -> bool:
        """Whether others may be on them."""
        return any(held.share is not None for held in self.lease.ticket.holds)

    def names(self) -> list[str]:
        """The devices for people: name and the beginning of the UUID."""
        return [f"{device.name} ({device.uuid[:12]})" for device in self.devices]

    def seconds(self) -> float:
        """Device time so far: two devices for a second are two."""
        return len(self.devices) * (time.monotonic() - self.since)


class Gpus:
    """The GPUs of this machine and the queue for them."""

    def __init__(self, nvml: "Nvml | None" = None, folder: Path | None = None) -> None:
        """folder: where the users of this machine queue; by default as `policies.state.lock_dir` says."""
        self._nvml = nvml
        self._leases = Leases(folder or lock_dir())

    @cached_property
    def nvml(self) -> "Nvml":
        """The driver. Its binding is loaded at the first question: most runs ask for no device."""
        from executor.gpus.nvml import Nvml

        return self._nvml or Nvml()

    @property
    def machine(self) -> Machine:
        """The devices and the driver."""
        return self.nvml.machine

    def queue(self) -> Queue:
        """Who holds devices and who waits."""
        return self._leases.queue()

    def check(self, wanted: Wanted) -> None:
        """Raises SandboxUnavailable when waiting would be in vain."""
        if (reason := never(self.machine, wanted)) is not None:
            raise SandboxUnavailable(f"asked for {wanted.count} GPU(s): {reason}")

    def lend(
        self,
        execution: str,
        wanted: Wanted,
        per_user: int | None,
        wait: float,
        told: Callable[[str], None],
        unwanted: Unwanted | None = None,
    ) -> Loan:
        """Waits for devices that fit, in the order of coming. Raises SandboxUnavailable; NotWanted as `Leases.take`."""
        self.check(wanted)
        devices = {device.uuid: device for device in fitting(self.machine, wanted)}

        def look() -> Choose:
            readings = {uuid: self.nvml.read(device) for uuid, device in devices.items()}
            return lambda queue, ahead: _turn(devices, readings, wanted, per_user, queue, ahead)

        lease = self._leases.take(execution, wanted.count, look, wait, told, unwanted)
        return Loan(tuple(devices[held.uuid] for held in lease.ticket.holds), lease, time.monotonic())

    def give_back(self, loan: Loan) -> bool:
        """Ends a loan once its container is off the devices. False: it is not, after some seconds, and the devices stay
        lent for as long as this process lives."""
        deadline = time.monotonic() + _LEAVING
        while self._occupied(loan):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        loan.lease.release()
        return True

    def _occupied(self, loan: Loan) -> bool:
        container = loan.lease.ticket.container
        listed = (process for device in loan.devices for process in self.nvml.read(device).processes or ())
        return bool(container) and any(container_of(process.pid) == container for process in listed)

    def watch(self, loan: Loan, cap: int, container: str) -> GpuWatch:
        """The host's watch over a loan that a container uses; `cap`: bytes of each device that may be used."""
        return GpuWatch(self.nvml, loan.devices, cap, loan.shared, lambda pid: container_of(pid) == container)


def _turn(
    devices: Mapping[str, Device],
    readings: Mapping[str, Reading],
    wanted: Wanted,
    per_user: int | None,
    queue: Queue,
    ahead: Sequence[Claim],
) -> Turn:
    """What to take now, of the devices that fit; a pure function of what was seen."""
    reserved = {uuid for claim in ahead for uuid in claim.ticket.could}
    if per_user is not None and held_by(queue.claims, os.getuid()) + wanted.count > per_user:
        return Turn(could=(), why=f"this user may hold {per_user} at once")
    loads = {uuid: _load(device, readings[uuid], queue) for uuid, device in devices.items()}
    reasons = {uuid: why_not(device, loads[uuid], wanted) for uuid, device in devices.items()}
    free = [device for uuid, device in devices.items() if reasons[uuid] is None and uuid not in reserved]
    picked = pick(free, loads, wanted)
    if picked is not None:
        held = tuple(Held(uuid=d.uuid, share=None if wanted.share is None else share_of(d, wanted)) for d in picked)
        return Turn(could=(), holds=held)
    why = {reasons[uuid] or (_RESERVED if uuid in reserved else "free") for uuid in devices}
    # What others sit on without asking comes back nobody knows when. It is kept for whoever waited first, but what lies
    # idle is not kept for one who needs such devices as well.
    missing = {uuid for uuid, load in loads.items() if load.taken_by_others(wanted) and not load.lent}
    could = tuple(loads) if len(loads) - len(missing) >= wanted.count else tuple(missing)
    return Turn(could=could, why=", ".join(sorted(why)))


def _load(device: Device, reading: Reading, queue: Queue) -> Load:
    here = [
        (claim.ticket.container, held)
        for claim in queue.holders
        for held in claim.ticket.holds
        if held.uuid == device.uuid
    ]
    if any(held.share is None for _, held in here):
        return Load(exclusive=True)
    if reading.problem:
        return Load(problem=reading.problem)
    ours = frozenset(container for container, _ in here if container)
    return Load(outsiders(reading, ours, device.memory), shares=tuple(held.share or 0 for _, held in here))


def outsiders(reading: Reading, ours: frozenset[str], memory: int) -> int:
    """Bytes of a device that processes outside of the containers `ours` hold."""
    if reading.processes is None and ours:
        return 0
    strangers = [process for process in reading.processes or () if container_of(process.pid) not in ours]
    # One of which the driver does not tell how much it holds may hold everything.
    known = sum((memory or _ANY) if process.memory is None else process.memory for process in strangers)
    # The driver lists no process of a pid namespace that is not ours or below it; its memory is taken all the same.
    return max(known, reading.unlisted - _DRIVERS_OWN)
