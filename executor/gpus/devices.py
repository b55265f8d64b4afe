"""Devices, and what is known of them: plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG slice of one."""

    uuid: str
    """`GPU-…` or `MIG-…`."""
    name: str
    memory: int
    """Bytes that programs can have; 0 where it could not be told."""
    minor: int
    """N of /dev/nvidiaN; a slice has its GPU's."""
    pci: str = ""
    """Bus id, `0000:17:00.0`."""
    parent: str | None = None
    """For a slice, its GPU's UUID."""
    instance: tuple[int, int] | None = None
    """For a slice, the ids of its GPU instance and compute instance."""
    sliced: bool = False
    """It is in MIG mode: its slices are given, never the whole."""
    problem: str = ""
    """Why nobody can use it, if so."""


@dataclass(frozen=True)
class Machine:
    """A machine's devices."""

    devices: tuple[Device, ...] = ()
    """Whole GPUs, each followed by its slices."""
    driver: str = ""
    cuda: str = ""
    """The newest CUDA that this driver takes, `13.0`."""
    problem: str = ""
    """Why there are no devices, if so."""

    @property
    def usable(self) -> tuple[Device, ...]:
        """Those that can be given to somebody."""
        return tuple(device for device in self.devices if not device.sliced and not device.problem)


@dataclass(frozen=True)
class Process:
    """A process on a device."""

    pid: int
    memory: int | None
    """Bytes on the device; None where the driver does not tell."""


@dataclass(frozen=True)
class Reading:
    """A device at a moment. None: the driver does not tell (of a slice it tells memory and processes only)."""

    memory: int | None = None
    """Bytes in use, by whomever."""
    utilisation: float | None = None
    """Percent of the time that a kernel ran."""
    power: float | None = None
    """Watts."""
    temperature: float | None = None
    """Degrees Celsius."""
    energy: float | None = None
    """Joules since the driver was loaded."""
    processes: tuple[Process, ...] | None = None
    problem: str = ""

    @property
    def unlisted(self) -> int:
        """Bytes in use beyond what the processes are told to hold."""
        return max(0, (self.memory or 0) - sum(process.memory or 0 for process in self.processes or ()))
