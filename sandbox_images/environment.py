"""The daemonless backend's environment: a virtual environment built once from the lock into the cache, or one of the user's."""

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_images.lock import FLAVOURS, Flavour, lock_file
from sandbox_images.wheels import BuildError, Progress, content_digest, exclusive, run, scratch, wheelhouse


@dataclass(frozen=True)
class Environment:
    """A virtual environment on the host that containers see read-only."""

    path: Path
    """The environment; its `bin/python3` leads to the interpreter under `base`."""
    base: Path
    """Prefix of the interpreter that it was made from."""
    digest: str
    """sha256:… over the wheels in it and the interpreter's version; of a user's, over what its packages say they are."""


def environment(cache: Path, progress: Progress, flavour: Flavour = "cpu") -> Environment:
    """Builds the environment of a flavour if it is not there. Raises BuildError."""
    lock, base, target = lock_file(flavour), _base(), _target(cache, flavour)
    with exclusive(target):
        if not target.is_dir():
            wheels = wheelhouse(lock, cache, progress)
            progress("installing the sandbox's Python environment")
            with scratch(target) as folder:
                _build(folder, wheels, lock)
                folder.rename(target)
    return Environment(target, base, (target / "digest").read_text())


def users_environment(folder: Path) -> Environment:
    """An environment that somebody else made: a virtual one, or an interpreter's prefix (conda). Nothing in it is run.

    Raises BuildError where there is no Python in it, or where its interpreter's prefix is the whole file system.
    """
    path = folder.expanduser().absolute()
    if not (path / "bin/python3").exists():
        raise BuildError(f"{path} is not a Python environment: it has no bin/python3")
    base = path
    with contextlib.suppress(OSError):
        for line in (path / "pyvenv.cfg").read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                base = Path(value.strip()).resolve().parent  # /bin may be a link to /usr/bin
    if (base := base.resolve()) == Path("/"):
        raise BuildError(
            f"the interpreter of {path} has the whole file system for its prefix, which no container may see"
        )
    packages = hashlib.sha256()
    for record in sorted(path.glob("lib/python3*/site-packages/*.dist-info/RECORD")):
        packages.update(f"{record.parent.name} {hashlib.sha256(record.read_bytes()).hexdigest()}\n".encode())
    return Environment(path, base, f"sha256:{packages.hexdigest()}")


def built_environments(cache: Path) -> list[dict[str, Any]]:
    """Those in the cache: reference, id, bytes (not counted: None), and whether each is a current one."""
    current = {_target(cache, flavour) for flavour in FLAVOURS}
    return [
        {
            "reference": f"environment:{path.name}",
            "id": (path / "digest").read_text(),
            "bytes": None,
            "current": path in current,
        }
        for path in sorted((cache / "environments").glob("[!.]*-*"))
        if (path / "digest").exists()
    ]


def _base() -> Path:
    return Path(sys.base_prefix).resolve()


def _target(cache: Path, flavour: Flavour) -> Path:
    key = hashlib.sha256(lock_file(flavour).read_bytes() + f"{sys.version}{_base()}".encode()).hexdigest()
    return cache / "environments" / f"{flavour}-{key[:16]}"


def _build(folder: Path, wheels: Path, lock: Path) -> None:
    base_python = getattr(sys, "_base_executable", sys.executable)
    run([base_python, "-I", "-m", "venv", "--without-pip", "--symlinks", str(folder)], "make an environment")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python3"), "install", "--quiet"]
    source = ["--no-index", "--find-links", str(wheels), "--only-binary=:all:", "--requirement", str(lock)]
    run([*install, *source], "install the sandbox's packages")
    version = "{}.{}.{}".format(*sys.version_info)
    digest = hashlib.sha256(f"python {version}\n{content_digest(wheels)}".encode()).hexdigest()
    (folder / "digest").write_text(f"sha256:{digest}")
