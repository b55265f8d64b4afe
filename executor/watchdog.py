"""The host's watch over limits that the kernel does not hold: best effort, for policies that are content with it.

What a process does between two looks is not seen; that is why `enforcement: strict` refuses such a backend.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from executor.conversation import StopReason
from executor.posture import SIZED
from policies.model import Limits

INTERVAL = 0.2
"""Seconds between two looks."""


class Watchdog:
    """Looks at every process of one container and at its files."""

    def __init__(self, pid: int, limits: Limits, watched: Mapping[str, str]) -> None:
        self._pid = pid
        self._limits = limits
        self._watched = watched

    def look(self) -> StopReason | None:
        """Why the experiment must be ended, or None. Holds it to its number of cores as far as affinity does."""
        memory = threads = 0
        for process in self._processes():
            try:
                with process.oneshot():
                    threads += process.num_threads()
                    if "memory" in self._watched:
                        memory += process.memory_full_info().uss
                if "cpus" in self._watched:
                    cores = psutil.Process().cpu_affinity() or [0]
                    process.cpu_affinity(cores[: max(1, int(self._limits.cpus))])
            except psutil.Error:
                continue  # it ended while we looked
        if "memory" in self._watched and memory + self._files() > self._limits.memory:
            return "watched_memory"
        if "pids" in self._watched and threads > self._limits.pids:
            return "watched_pids"
        return None

    def _processes(self) -> Iterator[psutil.Process]:
        """Those in the pid namespace of the container's PID 1, wherever they put themselves."""
        try:
            ours = Path(f"/proc/{self._pid}/ns/pid").readlink()
        except OSError:
            return
        for process in psutil.process_iter():
            try:
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == ours:
                    yield process
            except OSError:
                continue

    def _files(self) -> int:
        """Bytes in the writable folders, which are memory too."""
        total = 0
        for point in SIZED.values():
            try:
                total += psutil.disk_usage(f"/proc/{self._pid}/root{point}").used
            except OSError:
                continue
        return total
