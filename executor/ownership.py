"""Who owns a container: a process of a user on a machine, by pid and start time, until a deadline.

A pid alone is reused; with the start time and the machine's boot it is not.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

PREFIX = "labsandbox."


@dataclass(frozen=True)
class Owner:
    """The labels of a container."""

    uid: int
    pid: int
    started: float
    """When that process started, in seconds since the epoch."""
    boot: str
    """The kernel's boot id, so that labels on a remote engine are not judged by this machine's pids."""
    deadline: float
    """Seconds since the epoch after which nobody can still want the container."""

    @classmethod
    def this_process(cls, lifetime: float) -> Self:
        """This process, for at most `lifetime` seconds from now."""
        return cls(
            uid=os.getuid(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            boot=_boot_id(),
            deadline=time.time() + lifetime,
        )

    def labels(self) -> dict[str, str]:
        """As container labels or OCI annotations."""
        return {f"{PREFIX}{name}": str(value) for name, value in vars(self).items()}

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """Reads `labels()` back; None when they are not ours or not whole."""
        try:
            return cls(
                uid=int(labels[PREFIX + "uid"]),
                pid=int(labels[PREFIX + "pid"]),
                started=float(labels[PREFIX + "started"]),
                boot=labels[PREFIX + "boot"],
                deadline=float(labels[PREFIX + "deadline"]),
            )
        except (KeyError, ValueError):
            return None

    def abandoned(self) -> bool:
        """Whether this user may sweep it: it is this user's, and the owner is dead or the deadline passed."""
        return self.uid == os.getuid() and (time.time() > self.deadline or self._dead())

    def _dead(self) -> bool:
        if self.boot != _boot_id():
            return False  # another machine, or this one before a reboot: its deadline decides
        return not alive(self.pid, self.started)


def alive(pid: int, started: float) -> bool:
    """Whether the process that had this pid and started then (seconds since the epoch) is there still."""
    try:
        return abs(psutil.Process(pid).create_time() - started) <= 1.0
    except psutil.NoSuchProcess:
        return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
