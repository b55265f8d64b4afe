"""Containers kept warm for all of a user's commands, as long as somebody serves: `labsandbox serve`, or a command of many runs."""

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from executor.backends.base import Backend
from executor.backends.oci import OciBackend
from executor.handover import PoolServer, Recipe, RemotePool
from executor.warm import MOST, Pool
from policies.audit import AuditLog
from policies.merge import box_ceilings
from policies.state import audit_path, cache_dir, state_dir
from sandbox_images.lock import Flavour

_LOCK, _SOCKET = "serve.lock", "serve.sock"


def supply() -> RemotePool:
    """Where this user's runs find containers that wait, while somebody serves."""
    return RemotePool(state_dir() / _SOCKET)


@contextmanager
def serving() -> Iterator[Pool | None]:
    """Keeps containers warm until it is left; None where another process of this user does so already, or where the
    socket cannot be used: then runs make their own."""
    state = state_dir()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state / _LOCK).open("w") as lock, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            pool = Pool(AuditLog(audit_path()), _most())
            stack.callback(pool.close)
            server = PoolServer(state / _SOCKET, pool, _backend)
            stack.callback(server.close)
        except OSError:
            yield None
            return
        yield pool


def _most() -> int:
    """How many may wait in all. Raises PolicyError."""
    said = [ceiling.runs.warm for ceiling in box_ceilings() if ceiling.runs and ceiling.runs.warm is not None]
    return min([MOST, *said])


def _backend(recipe: Recipe) -> Backend:
    """A backend like the one that a client describes."""
    runtime, image = recipe.get("runtime") or "runc", recipe.get("image")
    flavour: Flavour = "gpu" if recipe.get("flavour") == "gpu" else "cpu"
    if recipe.get("backend") == "docker":
        from executor.backends.docker import DockerBackend  # as in lab_setup.py

        return DockerBackend(image or "", runtime, flavour)
    return OciBackend(state_dir(), cache_dir(), runtime, flavour, Path(image) if image else None)
