"""Where labsandbox keeps its own files on the host."""

import os
import tempfile
from pathlib import Path


def state_dir() -> Path:
    """Audit log, bundles, agents: $LABSANDBOX_STATE_DIR, /var/lib/labsandbox for root, else XDG's state."""
    if named := os.environ.get("LABSANDBOX_STATE_DIR"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/labsandbox")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "labsandbox"


def state_problem(state: Path) -> str | None:
    """Why nothing can be written there; None where it can, or where the folder can be made. Writes nothing itself."""
    place = state
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
    except OSError as error:
        return error.strerror or str(error)
    if not place.is_dir():
        return f"{place} is not a folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is read-only for this user"


def cache_dir() -> Path:
    """Wheels and environments: $LABSANDBOX_CACHE_DIR, else XDG's cache."""
    if named := os.environ.get("LABSANDBOX_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labsandbox"


def runtime_dir() -> Path:
    """What lasts no longer than a process and is known to all of this user's: /run/labsandbox for root, else in XDG's runtime
    folder, or with the state where there is none."""
    if os.getuid() == 0:
        return Path("/run/labsandbox")
    named = os.environ.get("XDG_RUNTIME_DIR")
    return Path(named) / "labsandbox" if named else state_dir()


def lock_dir() -> Path:
    """Where all users of this machine queue for its GPUs, cores and memory: $LABSANDBOX_LOCK_DIR, else /run/lock/labsandbox."""
    return Path(os.environ.get("LABSANDBOX_LOCK_DIR") or "/run/lock/labsandbox")


def audit_path() -> Path:
    """The audit log's file."""
    return state_dir() / "audit.jsonl"


def memory_path() -> Path:
    """The index of past sprints."""
    return state_dir() / "memory.sqlite"


def write_secret(path: Path, text: str) -> None:
    """A new file that only its owner can read, whole at once. Raises FileExistsError where there is one, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(path).hardlink_to(temporary)
    finally:
        Path(temporary).unlink()
