"""What NVIDIA's driver says of its devices, through NVML, and a problem in words where it says nothing.

Indices of CUDA and of NVML can differ, so devices are named by their UUIDs.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from executor.gpus.devices import Device, Machine, Process, Reading

_T = TypeVar("_T")

_PROBLEMS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "there is no NVIDIA driver on this machine (no libnvidia-ml.so.1)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed, but its kernel module is not loaded "
    "(as root: modprobe nvidia)",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver's library and its kernel module have different "
    "versions: it was updated and not loaded again (reboot)",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not use the NVIDIA driver (see the mode of /dev/nvidiactl)",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the device is lost: it fell off the bus (reboot)",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the device needs a reset (as root: nvidia-smi --gpu-reset)",
}


class Nvml:
    """NVML of this machine. The library is initialised at the first question and stays so."""

    def __init__(self, library: Any = pynvml) -> None:
        """library: NVIDIA's Python binding, or what answers like it."""
        self._library = library
        self._initialised = False

    @property
    def machine(self) -> Machine:
        """The devices and the driver, as they are now: slices come and go, and devices are lost."""
        try:
            if not self._initialised:
                self._library.nvmlInit()
                self._initialised = True
            driver = str(self._library.nvmlSystemGetDriverVersion())
            cuda = self._ask(self._library.nvmlSystemGetCudaDriverVersion_v2) or 0
            count = self._library.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            return Machine(problem=problem_of(error))
        found = [device for index in range(count) for device in self._gpu(index)]
        problem = "" if found else "the NVIDIA driver finds no device that this user may use"
        return Machine(tuple(found), driver, f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "", problem)

    def read(self, device: Device) -> Reading:
        """The device as it is now."""
        library = self._library
        try:
            handle = library.nvmlDeviceGetHandleByUUID(device.uuid)
            _, used = self._memory(handle)
        except pynvml.NVMLError as error:
            return Reading(problem=problem_of(error))
        processes = self._processes(handle)
        if device.parent is not None:
            return Reading(memory=used, processes=processes)
        rates = self._ask(library.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(library.nvmlDeviceGetPowerUsage, handle)
        heat = self._ask(library.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        energy = self._ask(library.nvmlDeviceGetTotalEnergyConsumption, handle)
        return Reading(
            memory=used,
            utilisation=None if rates is None else float(rates.gpu),
            power=None if power is None else power / 1000,
            temperature=None if heat is None else float(heat),
            energy=None if energy is None else energy / 1000,
            processes=processes,
        )

    def _gpu(self, index: int) -> list[Device]:
        """One GPU and its slices. One that this user (or this container) may not use is left out."""
        library = self._library
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            uuid = str(library.nvmlDeviceGetUUID(handle))
            name = str(library.nvmlDeviceGetName(handle))
            minor = int(library.nvmlDeviceGetMinorNumber(handle))
            memory, _ = self._memory(handle)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
                return []
            return [Device(f"(GPU {index})", "?", 0, -1, problem=problem_of(error))]
        pci = self._ask(library.nvmlDeviceGetPciInfo, handle)
        bus = os.fsdecode(pci.busId).lower()[-12:] if pci is not None else ""
        mode = self._ask(library.nvmlDeviceGetMigMode, handle)
        sliced = bool(mode and mode[0])
        prohibited = self._ask(library.nvmlDeviceGetComputeMode, handle) == pynvml.NVML_COMPUTEMODE_PROHIBITED
        problem = "its compute mode is prohibited (as root: nvidia-smi -c DEFAULT)" if prohibited else ""
        gpu = Device(uuid, name, memory, minor, bus, sliced=sliced, problem=problem)
        return [gpu, *(self._slices(handle, gpu) if sliced else ())]

    def _slices(self, handle: Any, gpu: Device) -> list[Device]:
        library, found = self._library, []
        for index in range(self._ask(library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._ask(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if part is None:
                continue  # there can be more than there are
            try:
                ids = library.nvmlDeviceGetGpuInstanceId(part), library.nvmlDeviceGetComputeInstanceId(part)
                uuid, name = str(library.nvmlDeviceGetUUID(part)), str(library.nvmlDeviceGetName(part))
                memory, _ = self._memory(part)
            except pynvml.NVMLError:
                continue  # taken apart meanwhile, or another's
            found.append(Device(uuid, name, memory, gpu.minor, gpu.pci, gpu.uuid, (int(ids[0]), int(ids[1]))))
        return found

    def _memory(self, handle: Any) -> tuple[int, int | None]:
        """Bytes that programs can have of a device, and bytes in use; without the driver's own reserve, where it tells.

        (0, None) where it tells neither: of a GPU that has none of its own, and, to users without privileges, of one in MIG mode.
        """
        info = self._ask(lambda: self._library.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
        if info is not None:
            return int(info.total) - int(info.reserved), int(info.used)
        try:
            info = self._library.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION):
                return 0, None
            raise
        return int(info.total), int(info.used)

    def _processes(self, handle: Any) -> tuple[Process, ...] | None:
        """Those that compute and those that draw, each once."""
        library, found = self._library, dict[int, int | None]()
        computing = self._ask(library.nvmlDeviceGetComputeRunningProcesses, handle)
        if computing is None:
            return None
        for one in [*computing, *(self._ask(library.nvmlDeviceGetGraphicsRunningProcesses, handle) or ())]:
            found[int(one.pid)] = None if one.usedGpuMemory is None else int(one.usedGpuMemory)
        return tuple(Process(pid, memory) for pid, memory in found.items())

    def _ask(self, question: Callable[..., _T], *arguments: Any) -> _T | None:
        """An answer, or None where this device or driver has none."""
        try:
            return question(*arguments)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None


def problem_of(error: pynvml.NVMLError) -> str:
    """NVML's error in words that say what to do."""
    return _PROBLEMS.get(error.value) or f"the NVIDIA driver answers: {error}"
