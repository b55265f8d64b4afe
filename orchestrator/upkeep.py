"""What is running on this machine, ending it, and clearing away what crashes left."""

import contextlib
import os
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from executor.backends.base import Backend, Found
from executor.errors import InfrastructureError
from executor.executor import Executor
from executor.places import CORES, MEMORY, Places, Room
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import every_backend
from policies.audit import AuditLog
from policies.merge import box_ceilings
from policies.state import audit_path, cache_dir, state_dir
from results.store import unfinished
from sandbox_images.wheels import leftovers

_KEPT_SECONDS = 30 * 24 * 3600.0
"""For so long fetched packages are kept after they were last made or used."""
_KILL_SECONDS = 10.0
_FINISHED_SECONDS = 24 * 3600.0
"""Whatever was being written so long ago is not being written any more."""


@dataclass(frozen=True)
class Running:
    """A container of labsandbox's on this machine."""

    backend: Backend
    found: Found

    @property
    def mine(self) -> bool:
        return self.found.owner.uid == os.getuid()


def running() -> list[Running]:
    """Every container that can be seen here, this user's and others'."""
    every, seen = [], set()
    for backend in every_backend(state_dir(), cache_dir()):
        for found in backend.found():
            if found.execution_id not in seen:  # an engine shows each under every one of its runtimes
                seen.add(found.execution_id)
                every.append(Running(backend, found))
    return every


@dataclass
class Noted:
    """What this user's audit log has of a container."""

    waiting: bool = False
    """It was made ahead, and no run has taken it."""
    sprint: str | None = None
    since: str | None = None
    """When its run began, or when it was made ahead."""


def noted() -> dict[str, Noted]:
    """By execution id."""
    found: defaultdict[str, Noted] = defaultdict(Noted)
    for record in AuditLog(audit_path()).records():
        if record.get("event") not in ("warm", "decision", "start"):
            continue
        note = found[str(record.get("execution"))]
        note.waiting = record["event"] == "warm"
        note.sprint = str(record["sprint"]) if record.get("sprint") else note.sprint
        note.since = str(record.get("time"))
    return dict(found)


def queue() -> str:
    """Who has the machine's cores and memory and who waits for them, in one line; nothing where nobody runs."""
    places = Places(Room.here(box_ceilings()))
    claims = places.queue()
    if not claims.claims:
        return ""
    cores, memory = (
        sum(held.share or 0 for claim in claims.holders for held in claim.ticket.holds if held.uuid == name)
        for name in (CORES, MEMORY)
    )
    text = (
        f"running: {len(claims.holders)}, with {cores / 1000:g} of {places.room.cores:g} cores to lend and "
        f"{memory / 2**30:.1f} of {places.room.memory / 2**30:.1f} GiB"
    )
    first = ", ".join(f"uid {claim.uid} for {time.time() - claim.ticket.since:.0f} s" for claim in claims.waiting)
    return f"{text}; waiting first of their user's: {first}" if first else text


def kill(prefix: str) -> Running:
    """Ends the one container whose execution id begins with `prefix`; whoever waits for it records the end.

    Raises UsageProblem when there is none or more than one, or it is another user's; InfrastructureError when it does
    not end.
    """
    matching = [one for one in running() if prefix and one.found.execution_id.startswith(prefix)]
    if not matching:
        raise UsageProblem(f"no container's execution id begins with {prefix!r} (labsandbox ps lists them)")
    if len(matching) > 1:
        raise UsageProblem(f"{len(matching)} execution ids begin with {prefix!r}: give more of it")
    (one,) = matching
    if not one.mine and os.getuid() != 0:
        raise UsageProblem(f"{one.found.execution_id} belongs to uid {one.found.owner.uid}")
    AuditLog(audit_path()).append("kill", execution=one.found.execution_id, backend=one.backend.name)
    one.found.container.kill()
    deadline = time.monotonic() + _KILL_SECONDS
    while one.found.container.pid() is not None:
        if time.monotonic() > deadline:
            raise InfrastructureError(f"{one.found.execution_id} was told to end, and still runs")
        time.sleep(0.05)
    return one


@dataclass(frozen=True)
class Cleared:
    """What `clear` removed."""

    containers: list[str]
    paths: list[Path]


def clear(results: Path) -> Cleared:
    """Sweeps every backend, and removes unfinished files and downloads, and packages that nobody used for a month."""
    audit, containers = AuditLog(audit_path()), []
    for backend in every_backend(state_dir(), cache_dir()):
        containers += Executor(backend, audit).sweep()
    paths = leftovers(cache_dir()) + _unused(cache_dir()) + unfinished(results, _FINISHED_SECONDS)
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return Cleared(containers, paths)


def _unused(cache: Path) -> list[Path]:
    old = []
    for path in [*cache.glob("packages/*"), *cache.glob("resolved/*")]:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                old.append(path)
    return old
