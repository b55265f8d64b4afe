"""The wheelhouse: wheels of a lock, downloaded once by the host, which runs nothing that is in them."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_RANDOM = 8  # characters that tempfile adds to a prefix
Progress = Callable[[str], None]


class BuildError(RuntimeError):
    """An image or environment could not be built; the text is one line for people."""


def wheelhouse(lock: Path, cache: Path, progress: Progress) -> Path:
    """A folder with every wheel of `lock` for this Python. Raises BuildError.

    Source distributions are never taken: building one would run its code on the host.
    """
    version = "{}.{}".format(*sys.version_info)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    target = cache / "wheels" / f"{lock.stem}-{digest}-py{version}"
    with exclusive(target):
        if target.is_dir():
            return target
        progress(f"downloading the wheels of {lock.name}")
        with scratch(target) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
            run([*command, "--requirement", str(lock), "--dest", str(folder)], "download the wheels")
            folder.rename(target)
    return target


def content_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the wheels in `folder`."""
    total = hashlib.sha256()
    for wheel in sorted(folder.glob("*.whl")):
        with wheel.open("rb") as file:
            total.update(f"{wheel.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Only one process at a time makes `target`; the others wait and then find it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be renamed to it when it is complete; gone otherwise."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(cache: Path) -> list[Path]:
    """Scratch folders whose maker died: nobody holds the lock of what they were to become."""
    found = []
    for folder in sorted(cache.glob("*/.*")):
        name, dot, rest = folder.name[1:].rpartition(".")
        if not (folder.is_dir() and dot and len(rest) == _RANDOM):
            continue
        with (folder.parent / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
        found.append(folder)
    return found


def run(command: list[str], what: str) -> None:
    """Runs a command quietly. Raises BuildError with the last line of what it said."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", umask=0o022
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if "error" in line.lower()] or said or ["it said nothing"]
        raise BuildError(f"could not {what}: {errors[-1].strip()[:300]}")
