"""The host's watch over lent devices: samples, energy, and who takes more memory than was decided.

A process is told to be the experiment's by its control group. Between two looks a process may take more than its share:
whoever must not depend on that gives slices (MIG), which the hardware keeps apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executor.errors import InfrastructureError
from executor.experiment import GpuSample, GpuUsage
from executor.gpus.devices import Device, Process, Reading

if TYPE_CHECKING:
    from executor.gpus.nvml import Nvml

_GUARDING = 0.2
"""Seconds between two looks at who might take too much."""
_SAMPLING = 1.0
_MAX_SAMPLES = 600
_SPARE = 0.05
"""Share of the machine's memory. Host memory that the driver pins for a program (`cudaHostAlloc`, torch's `pin_memory`) counts
for no control group, so it is the machine's that is looked at."""
_SLACK = 512 << 20
"""Bytes of a shared device that nobody is told to hold, and nobody is asked about: the driver's own."""


@dataclass
class _Track:
    """What was seen of one device."""

    device: Device
    before: Reading
    samples: list[GpuSample] = field(default_factory=list)
    peak: int = 0
    gone: set[int] = field(default_factory=set)
    """Listed at the last look, and not to be found in /proc."""
    unlisted: int = 0
    """Bytes that no process was told to hold, at the last look."""


class GpuWatch:
    """Looks at the devices of one run, from its start until after its end."""

    def __init__(
        self, nvml: "Nvml", devices: tuple[Device, ...], cap: int, shared: bool, belongs: Callable[[int], bool]
    ) -> None:
        """cap: bytes of each device that may be used. belongs: whether a pid is one of the experiment's."""
        self._nvml = nvml
        self._tracks = [_Track(device, nvml.read(device)) for device in devices]
        self._cap = cap
        self._shared = shared
        self._belongs = belongs
        self._sampled = 0.0

    @property
    def every(self) -> float:
        """Seconds between two looks."""
        return _GUARDING if any(map(self._capped, self._tracks)) else _SAMPLING

    def _capped(self, track: _Track) -> bool:
        """Whether less than all of it may be used; of one whose size is not told that may be so."""
        return not track.device.memory or self._cap < track.device.memory

    def look(self, seconds: float) -> bool:
        """Whether more memory is in use than may be. Raises InfrastructureError when a device is gone, or is shared and
        nobody can tell who uses how much of it."""
        over = False
        sampling = seconds >= self._sampled
        if sampling:
            self._sampled = seconds + 0.9 * _SAMPLING
        for track in self._tracks:
            reading = self._nvml.read(track.device)
            if reading.problem:
                raise InfrastructureError(f"{track.device.uuid}: {reading.problem}")
            used = self._used(track, reading)
            track.peak = max(track.peak, used)
            over = over or (used > self._cap and self._capped(track))
            if sampling and len(track.samples) < _MAX_SAMPLES:
                track.samples.append(
                    GpuSample(
                        t=round(seconds, 3),
                        memory_bytes=used,
                        utilisation=reading.utilisation,
                        power_w=reading.power,
                        temperature_c=reading.temperature,
                    )
                )
        return over

    def machine_is_short(self) -> bool:
        """Whether the machine has next to no memory left, which the run may have had pinned past its limit."""
        import psutil  # runs without a GPU do not load it

        memory = psutil.virtual_memory()
        return bool(memory.available < _SPARE * memory.total)

    def usage(self) -> list[GpuUsage]:
        """What the devices were used for, as far as the driver tells. Energy is the whole device's, by its counter."""
        return [self._usage(track) for track in self._tracks]

    def _used(self, track: _Track, reading: Reading) -> int:
        """Bytes in use by the experiment."""
        listed = reading.processes or ()
        mine = [process for process in listed if self._belongs(process.pid)]
        known = sum(process.memory or 0 for process in mine)
        told = reading.processes is not None and None not in [process.memory for process in mine]
        strangers = [process for process in listed if process not in mine]
        unseen, unlisted = self._unseen(track, strangers), self._unlisted(track, reading)
        if self._shared:
            if not told or unseen or unlisted > _SLACK:
                raise InfrastructureError(
                    f"{track.device.uuid} is shared, and the driver does not tell who uses how much of it"
                )
            return known
        if strangers and told and not unseen:
            return known + unlisted
        # The device is its alone: what is in use beyond what was before is its, whatever the driver lists.
        return max(known, (reading.memory or 0) - (track.before.memory or 0))

    def _unseen(self, track: _Track, processes: list[Process]) -> bool:
        """Whether pids are another namespace's, so that nobody can tell whose they are: two looks in a row find none."""
        gone = {process.pid for process in processes if not Path(f"/proc/{process.pid}").exists()}
        before, track.gone = track.gone, gone
        return bool(gone & before)

    def _unlisted(self, track: _Track, reading: Reading) -> int:
        """Bytes that no process is told to hold, more than before the run: managed memory is of this kind. What two looks in
        a row find, since a process may leave between the two questions of one."""
        before, track.unlisted = track.unlisted, max(0, reading.unlisted - track.before.unlisted)
        return min(before, track.unlisted)

    def _usage(self, track: _Track) -> GpuUsage:
        after, before = self._nvml.read(track.device), track.before
        energy = None if after.energy is None or before.energy is None else max(0.0, after.energy - before.energy)
        rates = [sample.utilisation for sample in track.samples if sample.utilisation is not None]
        return GpuUsage(
            uuid=track.device.uuid,
            name=track.device.name,
            shared=self._shared,
            peak_memory_bytes=track.peak,
            mean_utilisation=sum(rates) / len(rates) if rates else None,
            energy_j=energy,
            samples=track.samples,
        )
