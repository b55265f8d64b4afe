"""Who uses what, now: the devices with their processes and leases, and the queue. Plain data, for people and programs."""

import pwd
import time
from dataclasses import dataclass

from executor.gpus.devices import Device, Reading
from executor.gpus.lending import Gpus
from executor.gpus.processes import ProcessOwner, owner_of
from executor.leases import Claim, Queue


@dataclass(frozen=True)
class Using:
    """A process on a device."""

    pid: int
    memory: int | None
    """Bytes."""
    owner: ProcessOwner
    execution: str
    """labsandbox's, where the process is in a container that the device is lent to."""


@dataclass(frozen=True)
class Standing:
    """A claim: of one who holds devices, or waits."""

    user: str
    uid: int
    pid: int
    execution: str
    seconds: float
    """Since it came."""
    count: int
    share: int | None = None
    """Bytes, where the device is shared."""


@dataclass(frozen=True)
class DeviceState:
    """A device now."""

    device: Device
    reading: Reading
    leases: tuple[Standing, ...]
    processes: tuple[Using, ...]


@dataclass(frozen=True)
class Survey:
    """The machine's GPUs now."""

    driver: str
    cuda: str
    problem: str
    devices: tuple[DeviceState, ...]
    queue: tuple[Standing, ...]
    """Those who wait, in their order."""


def survey(gpus: Gpus) -> Survey:
    """Looks. Raises SandboxUnavailable or InfrastructureError when the queue cannot be read."""
    machine, queue = gpus.machine, gpus.queue()
    states = tuple(_state(gpus, device, queue) for device in machine.devices)
    waiting = tuple(_standing(claim) for claim in queue.waiting)
    return Survey(machine.driver, machine.cuda, machine.problem, states, waiting)


def _state(gpus: Gpus, device: Device, queue: Queue) -> DeviceState:
    reading = Reading(problem=device.problem) if device.problem else gpus.nvml.read(device)
    here = [(claim, held) for claim in queue.holders for held in claim.ticket.holds if held.uuid == device.uuid]
    executions = {claim.ticket.container: claim.ticket.execution for claim, _ in here if claim.ticket.container}
    processes = []
    for process in reading.processes or ():
        owner = owner_of(process.pid)
        processes.append(Using(process.pid, process.memory, owner, executions.get(owner.container, "")))
    return DeviceState(device, reading, tuple(_standing(claim, held.share) for claim, held in here), tuple(processes))


def _standing(claim: Claim, share: int | None = None) -> Standing:
    ticket = claim.ticket
    return Standing(
        user_name(claim.uid),
        claim.uid,
        ticket.pid,
        ticket.execution,
        max(0.0, time.time() - ticket.since),
        ticket.count,
        share,
    )


def user_name(uid: int) -> str:
    """The login name of a user id; "uid N" where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
