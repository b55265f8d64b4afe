"""Reads a container's control group from the host: which limits really hold, and what was used.

Control groups are read in either version: /proc/PID/cgroup (cgroups(7)) names the groups, mountinfo the file systems.
"""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from executor.experiment import Usage

_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a huge number."""


@dataclass(frozen=True)
class Cgroup:
    """The control group of one container, v1 (a folder for each controller) or v2 (one folder)."""

    folders: Mapping[str, Path]
    """Controller → folder; the key "" is the v2 group."""

    @classmethod
    def of(cls, pid: int, container_id: str) -> "Cgroup | None":
        """The groups of `pid`; None unless they are named for this container: it may be another host's pid."""
        mounts = _cgroup_mounts()
        folders = {}
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if container_id not in path:
                continue
            for controller in controllers.split(","):
                if controller in mounts:
                    folders[controller] = mounts[controller] / path.lstrip("/")
        return cls(folders) if folders else None

    @classmethod
    def named(cls, path: str) -> "Cgroup | None":
        """The groups at `path` below each controller's mount; they outlive the processes that were in them."""
        folders = {name: mount / path for name, mount in _cgroup_mounts().items() if (mount / path).is_dir()}
        return cls(folders) if folders else None

    def limits(self) -> dict[str, float]:
        """memory (bytes), swap (bytes beyond memory), cpus (cores), pids, and gpu_memory (bytes of each device, where the
        kernel counts it); one that is not limited is left out."""
        if "memory" in self.folders:
            found = {
                "memory": self._number("memory", "memory.limit_in_bytes"),
                "memory+swap": self._number("memory", "memory.memsw.limit_in_bytes"),
                "pids": self._number("pids", "pids.max"),
            }
            quota = self._number("cpu", "cpu.cfs_quota_us")
            period = self._number("cpu", "cpu.cfs_period_us")
        else:
            found = {
                "memory": self._number("", "memory.max"),
                "swap": self._number("", "memory.swap.max"),
                "pids": self._number("", "pids.max"),
            }
            found["gpu_memory"] = self._device_memory()
            words = (self._text("", "cpu.max") or "max").split()
            quota, period = (float(words[0]), float(words[1])) if words[0] != "max" else (None, None)
        if found["memory"] is not None and (both := found.pop("memory+swap", None)) is not None:
            found["swap"] = both - found["memory"]
        if quota and period and quota > 0:
            found["cpus"] = quota / period
        if found.get("swap") is None and _host_has_no_swap():
            found["swap"] = 0.0
        return {name: value for name, value in found.items() if value is not None and value < _UNLIMITED}

    def usage(self) -> Usage:
        """CPU seconds, peak memory and peak number of processes so far; what this kernel does not count is None."""
        if "memory" in self.folders:
            nanoseconds = self._number("cpuacct", "cpuacct.usage")
            cpu = None if nanoseconds is None else nanoseconds / 1e9
            memory = self._number("memory", "memory.max_usage_in_bytes")
            pids = self._number("pids", "pids.peak")
        else:
            microseconds = self._field("", "cpu.stat", "usage_usec")
            cpu = None if microseconds is None else microseconds / 1e6
            memory = self._number("", "memory.peak")
            pids = self._number("", "pids.peak")
        return Usage(cpu_s=cpu, peak_memory_bytes=_whole(memory), peak_pids=_whole(pids))

    def sample(self) -> dict[str, float]:
        """What is in use now: memory_bytes and pids, with cpu_s so far."""
        folder = "memory" if "memory" in self.folders else ""
        memory_file = "memory.usage_in_bytes" if folder else "memory.current"
        found = {
            "memory_bytes": self._number(folder, memory_file),
            "pids": self._number("pids" if folder else "", "pids.current"),
            "cpu_s": self.usage().cpu_s,
        }
        return {name: value for name, value in found.items() if value is not None}

    def oom_kills(self) -> int:
        """How often the kernel killed a process of this group because its memory was out."""
        if "memory" in self.folders:
            return int(self._field("memory", "memory.oom_control", "oom_kill") or 0)
        return int(self._field("", "memory.events", "oom_kill") or 0)

    def pids_refused(self) -> int:
        """How often a fork was refused because the group was full."""
        return int(self._field("pids" if "pids" in self.folders else "", "pids.events", "max") or 0)

    def full_weight(self) -> None:
        """Gives the group the usual claim to the processors. Raises OSError."""
        if "cpu" in self.folders:
            (self.folders["cpu"] / "cpu.shares").write_text("1024")
        elif (file := self.folders.get("", Path()) / "cpu.weight").exists():
            file.write_text("100")

    def remove(self) -> None:
        """Ends whatever is left in the group and removes it; what the kernel still holds stays for the next sweep."""
        for folder in self.folders.values():
            for attempt in range(100):
                with contextlib.suppress(OSError):
                    for pid in (folder / "cgroup.procs").read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                    folder.rmdir()
                    break
                if not folder.exists():
                    break
                time.sleep(min(0.02, 0.001 * 1.5**attempt))

    def devices(self) -> list[str]:
        """The device rules of v1, such as "c 1:3 rwm"; empty where they cannot be read (v2 keeps them in a program)."""
        return (self._text("devices", "devices.list") or "").splitlines()

    def _device_memory(self) -> float | None:
        """The largest of the limits that were set for single devices (dmem.max, "REGION BYTES" a line; "max": none was)."""
        words = [line.split() for line in (self._text("", "dmem.max") or "").splitlines()]
        return max((float(line[1]) for line in words if len(line) == 2 and line[1].isdigit()), default=None)

    def _text(self, controller: str, name: str) -> str | None:
        folder = self.folders.get(controller)
        try:
            return None if folder is None else (folder / name).read_text()
        except OSError:
            return None

    def _number(self, controller: str, name: str) -> float | None:
        text = (self._text(controller, name) or "").strip()
        return float(text) if text.lstrip("-").isdigit() else None

    def _field(self, controller: str, name: str, field: str) -> float | None:
        for line in (self._text(controller, name) or "").splitlines():
            key, _, value = line.partition(" ")
            if key == field and value.isdigit():
                return float(value)
        return None


def controllers() -> frozenset[str]:
    """The controllers that this kernel offers here, in either version."""
    mounts = _cgroup_mounts()
    found = set(mounts) - {""}
    if "" in mounts:
        found |= set((mounts[""] / "cgroup.controllers").read_text().split())
    return frozenset(found)


def unified() -> bool:
    """Whether this host has cgroup v2 alone."""
    return set(_cgroup_mounts()) == {""}


def _host_has_no_swap() -> bool:
    return "SwapTotal:              0 kB" in Path("/proc/meminfo").read_text()


@cache
def _cgroup_mounts() -> dict[str, Path]:
    """Controller → mount point, "" for v2."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        target = Path(before.split()[4])
        if kind == "cgroup2":
            mounts[""] = target
        elif kind == "cgroup":
            mounts |= dict.fromkeys(options.split()[-1].split(","), target)
    return mounts


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
