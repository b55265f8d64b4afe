"""The daemonless backend's environment: a virtual environment built once from the lock, into the cache."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_images.lock import lock_file
from sandbox_images.wheels import Progress, content_digest, exclusive, run, scratch, wheelhouse


@dataclass(frozen=True)
class Environment:
    """A virtual environment on the host that containers see read-only."""

    path: Path
    """The environment; its `bin/python3` leads to the interpreter under `base`."""
    base: Path
    """Prefix of the interpreter that it was made from."""
    digest: str
    """sha256:… over the wheels in it and the interpreter's version."""


def environment(cache: Path, progress: Progress) -> Environment:
    """Builds it if it is not there. Raises BuildError."""
    lock, base, target = lock_file("cpu"), _base(), _target(cache)
    with exclusive(target):
        if not target.is_dir():
            wheels = wheelhouse(lock, cache, progress)
            progress("installing the sandbox's Python environment")
            with scratch(target) as folder:
                _build(folder, wheels, lock)
                folder.rename(target)
    return Environment(target, base, (target / "digest").read_text())


def built_environments(cache: Path) -> list[dict[str, Any]]:
    """Those in the cache: reference, id, bytes (not counted: None), and whether each is the current one."""
    current = _target(cache)
    return [
        {
            "reference": f"environment:{path.name}",
            "id": (path / "digest").read_text(),
            "bytes": None,
            "current": path == current,
        }
        for path in sorted((cache / "environments").glob("cpu-*"))
        if (path / "digest").exists()
    ]


def _base() -> Path:
    return Path(sys.base_prefix).resolve()


def _target(cache: Path) -> Path:
    key = hashlib.sha256(lock_file("cpu").read_bytes() + f"{sys.version}{_base()}".encode()).hexdigest()
    return cache / "environments" / f"cpu-{key[:16]}"


def _build(folder: Path, wheels: Path, lock: Path) -> None:
    base_python = getattr(sys, "_base_executable", sys.executable)
    run([base_python, "-I", "-m", "venv", "--without-pip", "--symlinks", str(folder)], "make an environment")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python3"), "install", "--quiet"]
    source = ["--no-index", "--find-links", str(wheels), "--only-binary=:all:", "--requirement", str(lock)]
    run([*install, *source], "install the sandbox's packages")
    version = "{}.{}.{}".format(*sys.version_info)
    digest = hashlib.sha256(f"python {version}\n{content_digest(wheels)}".encode()).hexdigest()
    (folder / "digest").write_text(f"sha256:{digest}")
