"""Recorded machines: what NVML answers on them, through an object that stands in for NVIDIA's binding."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pynvml

from executor.gpus.nvml import Nvml

GiB = 1 << 30
RESERVED = 600 << 20


@dataclass
class Gpu:
    """One device's answers; what is an exception is raised."""

    uuid: str
    name: str = "NVIDIA A100-SXM4-80GB"
    minor: int = 0
    total: int = 80 * GiB
    used: int = 0
    bus: str = "00000000:17:00.0"
    utilisation: int | None = 0
    power: int | None = 60_000  # milliwatts
    temperature: int | None = 31
    energy: int | None = 1_000_000  # millijoules
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    slices: "list[Gpu] | None" = None
    """None: not in MIG mode."""
    instance: tuple[int, int] | None = None
    compute_mode: int = pynvml.NVML_COMPUTEMODE_DEFAULT
    failing: int = 0
    """An NVML error that every question about it ends in."""
    silent: int = 0
    """An NVML error that questions about its memory end in."""


def uuid(number: int, prefix: str = "GPU") -> str:
    """A UUID as NVIDIA writes them."""
    return f"{prefix}-{number:08x}-1111-2222-3333-444444444444"


class Recorded:
    """Answers like the module pynvml, of one machine."""

    def __init__(self, *gpus: Gpu, failing: int = 0, driver: str = "580.95.05", cuda: int = 13000) -> None:
        self.gpus, self.failing, self.driver, self.cuda = list(gpus), failing, driver, cuda

    def nvmlInit(self) -> None:
        if self.failing:
            raise pynvml.NVMLError(self.failing)

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self._sound(self.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, wanted: str) -> Gpu:
        every = [one for gpu in self.gpus for one in (gpu, *(gpu.slices or ()))]
        found = [one for one in every if one.uuid == wanted]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self._sound(found[0])

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetMinorNumber(self, gpu: Gpu) -> int:
        return gpu.minor

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu, version: int | None = None) -> Any:
        if gpu.silent:
            raise pynvml.NVMLError(gpu.silent)
        return SimpleNamespace(total=gpu.total + RESERVED, used=gpu.used, reserved=RESERVED)

    def nvmlDeviceGetComputeMode(self, gpu: Gpu) -> int:
        return gpu.compute_mode

    def nvmlDeviceGetPciInfo(self, gpu: Gpu) -> Any:
        return SimpleNamespace(busId=gpu.bus)

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:
        if "A100" not in gpu.name and "H100" not in gpu.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(gpu.slices is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Gpu:
        if gpu.slices is None or index >= len(gpu.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu.slices[index]

    def nvmlDeviceGetGpuInstanceId(self, part: Gpu) -> int:
        assert part.instance is not None
        return part.instance[0]

    def nvmlDeviceGetComputeInstanceId(self, part: Gpu) -> int:
        assert part.instance is not None
        return part.instance[1]

    def nvmlDeviceGetUtilizationRates(self, gpu: Gpu) -> Any:
        return SimpleNamespace(gpu=self._told(gpu.utilisation), memory=0)

    def nvmlDeviceGetPowerUsage(self, gpu: Gpu) -> int:
        return self._told(gpu.power)

    def nvmlDeviceGetTemperature(self, gpu: Gpu, sensor: int) -> int:
        return self._told(gpu.temperature)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Gpu) -> int:
        return self._told(gpu.energy)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in gpu.compute]

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: Gpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in gpu.graphics]

    def _sound(self, gpu: Gpu) -> Gpu:
        if gpu.failing:
            raise pynvml.NVMLError(gpu.failing)
        return gpu

    def _told(self, value: int | None) -> int:
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value


NONE = Recorded(failing=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def one(**answers: Any) -> Recorded:
    """A machine with one device."""
    return Recorded(replace(Gpu(uuid(0)), **answers))


def eight() -> Recorded:
    """Six large devices and two small ones."""
    large = [Gpu(uuid(n), minor=n, bus=f"00000000:{n + 16:02x}:00.0") for n in range(6)]
    small = [
        Gpu(uuid(n), "NVIDIA RTX A4000", minor=n, total=16 * GiB, bus=f"00000000:{n + 16:02x}:00.0", energy=None)
        for n in (6, 7)
    ]
    return Recorded(*large, *small)


def sliced() -> Recorded:
    """A whole device, and one in MIG mode with two slices."""
    slices = [
        Gpu(uuid(n, "MIG"), "NVIDIA A100-SXM4-80GB MIG 3g.40gb", total=40 * GiB, instance=(n, 0), power=None)
        for n in (1, 2)
    ]
    return Recorded(Gpu(uuid(0)), Gpu(uuid(1), minor=1, bus="00000000:65:00.0", slices=slices))


def nvml(recorded: Recorded) -> Nvml:
    """NVML of a recorded machine."""
    return Nvml(recorded)
