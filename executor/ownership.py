"""Who owns a container: a process of a user on a machine, by pid and start time, until a deadline.

A pid alone is reused; with the start time and the machine's boot it is not. It means something only in its own pid
namespace: of an owner in another one (a container that was given the engine's socket), only the deadline can be judged.
"""

import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from policies.state import runtime_dir

PREFIX = "labsandbox."


@dataclass(frozen=True)
class Owner:
    """The labels of a container."""

    uid: int
    pid: int
    started: int
    """When that process started, in clock ticks since the boot: no change of the clock moves it."""
    namespace: str
    """The pid namespace that the pid is of."""
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
            started=start_ticks(os.getpid()) or 0,
            namespace=pid_namespace(),
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
                started=int(labels[PREFIX + "started"]),
                namespace=labels[PREFIX + "namespace"],
                boot=labels[PREFIX + "boot"],
                deadline=float(labels[PREFIX + "deadline"]),
            )
        except (KeyError, ValueError):
            return None

    def abandoned(self) -> bool:
        """Whether this user may sweep it: it is this user's, and the owner is dead or the deadline passed."""
        return self.uid == os.getuid() and (time.time() > self.deadline or self._dead())

    def _dead(self) -> bool:
        if self.boot != _boot_id() or self.namespace != pid_namespace():
            return False  # another machine, this one before a reboot, or pids that mean others: its deadline decides
        return not alive(self.pid, self.started)


class Adoption:
    """A container that this process took over from its maker, whose name the labels still have: others know it by a lock
    that ends with this process."""

    def __init__(self, name: str) -> None:
        """Raises OSError."""
        self._path = _adoptions() / name
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """Once, when the container is gone."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def adopted(name: str) -> bool:
    """Whether a living process took this container over."""
    path = _adoptions() / name
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


def _adoptions() -> Path:
    return runtime_dir() / "adopted"  # whatever their state folders, all sweep the same engine


def alive(pid: int, started: int) -> bool:
    """Whether the process of this namespace that had this pid and started then (clock ticks) is there still."""
    if (ticks := start_ticks(pid)) is not None:
        return ticks == started
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's, whom /proc does not show (hidepid, proc(5)): a pid that was reused cannot be told
    except (ProcessLookupError, OverflowError):
        return False
    return start_ticks(pid) == started


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot (proc_pid_stat(5), field 22); None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def pid_namespace() -> str:
    """This process's pid namespace: its number."""
    return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
