"""Whose a process on a device is: user, command and container, as /proc tells."""

import re
from dataclasses import dataclass
from pathlib import Path

_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])|/labsandbox/([0-9a-f]{16})(?![0-9a-f])")
_COMMAND = 200


@dataclass(frozen=True)
class ProcessOwner:
    """What is known of a process; empty where /proc does not show it to us."""

    user: str
    command: str
    container: str
    """The engine's id of its container, or the execution id of a daemonless one of ours."""


def owner_of(pid: int) -> ProcessOwner:
    """Looks a process of this pid namespace up. The command is the process's own word, and hostile."""
    import psutil

    try:
        process = psutil.Process(pid)
        user, command = process.username(), " ".join(process.cmdline()) or process.name()
    except (psutil.Error, OSError, KeyError):
        return ProcessOwner("", "", container_of(pid))
    return ProcessOwner(user, command[:_COMMAND], container_of(pid))


def container_of(pid: int) -> str:
    """The container that a process is in, by its control groups (cgroups(7)); "" when in none, or gone."""
    try:
        found = _CONTAINER.findall(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return ""
    return "".join(found[-1]) if found else ""  # the innermost: labsandbox may run in a container itself
