"""Containers that are there before they are asked for: made under exactly the terms of runs to come, used once each.

A pool belongs to one process, and so to one user. A run finds in it a container that it would have made itself, or none:
what went into making one is its kind. Nothing of any experiment was in it before; its interpreter has loaded modules of the
image and waits on the channel.
"""

import contextlib
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from executor.backends.base import Backend, Container, ContainerSpec
from executor.channel import Connection, exchange, frame, opening
from executor.errors import ExecutorError, InfrastructureError
from executor.experiment import ImageRef
from executor.job import library
from executor.ownership import Owner
from policies.audit import AuditError, AuditLog
from policies.model import Warm as Terms
from sandbox_images.lock import HERE

_TOLD = {"wall", "output", "metrics", "artifacts", "artifact_files"}
"""Limits that the host and PID 1 count: they come with the job."""
_LOOK = 5.0
"""Seconds between two looks at the memory that is left."""
_SCARCE = 0.1
"""Share of the machine's memory; with less available, nothing is kept waiting."""
_PATIENCE = 300.0
"""Seconds that making one may take: beside runs it gets next to nothing of the processors."""
MOST = 8
"""Containers that wait at most, of all kinds together, where no ceiling says less."""
_AGAIN = 30.0
"""Seconds until another attempt, where a container could not be made."""


@cache
def makers() -> str:
    """Digest of the code that makes containers, as it was when this process first asked."""
    folder = Path(__file__).parent
    files = [*sorted(folder.rglob("*.py")), HERE / "seccomp.json"]
    return sha256(b"".join(sha256(file.read_bytes()).digest() for file in files)).hexdigest()


@dataclass(frozen=True)
class Kind:
    """What a container is made from, and what is loaded in it: a run takes one of exactly its own kind."""

    spec: ContainerSpec
    """Its id and owner are those of the container that is made."""
    recipe: Mapping[str, str | None]
    """The backend's."""
    network: bool
    ahead: Mapping[str, Any]
    """What `ahead_of` gives."""

    @cached_property
    def _opening(self) -> bytes:
        return b"".join(opening(library(self.network)))

    def terms(self) -> dict[str, Any]:
        """What it is held to, for the audit log."""
        spec = self.spec
        return {
            "limits": spec.limits.model_dump(mode="json"),
            "isolation": spec.isolation,
            "network": self.network,
            "watched": sorted(spec.unheld),
            "image": spec.image.model_dump(),
            "backend": self.recipe.get("backend"),
            "runtime": self.recipe.get("runtime"),
            "preload": self.ahead["environment"]["LAB_PRELOAD"].split(),
        }

    @cached_property
    def key(self) -> str:
        """Equal for containers that could be each other. What is told with the job is no part of it."""
        limits = self.spec.limits.model_dump(mode="json", exclude=_TOLD)
        made_from = [self.spec.image.model_dump(), self.spec.isolation, sorted(self.spec.unheld), self.recipe]
        ours = [sha256(self._opening).hexdigest(), makers()]  # another version of labsandbox makes other containers
        return json.dumps([limits, made_from, ours, self.ahead], sort_keys=True)

    def make(self, execution: str, backend: Backend, seconds: float, begun: Callable[[Container], None]) -> "Warm":
        """A container that waits, and may for so long. Raises ExecutorError, and leaves nothing.

        begun: is told of the container before it has started; killing it ends this.
        """
        spec = replace(self.spec, execution_id=execution, owner=Owner.this_process(seconds), ahead=True)
        container = backend.create(spec)
        try:
            begun(container)
            connection = container.start()
            try:
                greeting = json.loads(exchange(connection, [self._opening], b"H", _PATIENCE))
                exchange(connection, [frame(b"P", json.dumps(self.ahead).encode())], b"R", _PATIENCE)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            container.destroy()
            raise
        return Warm(spec.execution_id, container, connection, greeting, spec.image, spec.owner.deadline)


@dataclass
class Warm:
    """A container that waits."""

    id: str
    """The id of the execution that takes it."""
    container: Container
    connection: Connection
    """On which nobody of this process waits."""
    greeting: dict[str, Any]
    image: ImageRef
    until: float
    """Seconds since the epoch: its owner's deadline."""
    lease: socket.socket | None = None
    """The service that made it watches the other end, and ends the container when this one is closed."""

    def usable(self, seconds: float) -> bool:
        """Whether it is alive and silent, and its owner's deadline leaves so much time for a run."""
        return time.time() + seconds < self.until and not self.connection.wait(0)

    def destroy(self) -> None:
        """Ends it unused."""
        self.connection.close()
        self.container.destroy()
        self.release()

    def release(self) -> None:
        """It is gone: nobody needs to watch over it."""
        if self.lease is not None:
            self.lease.close()


class Supply(Protocol):
    """Where runs find containers that wait: this process's own pool, or a service's."""

    def there(self) -> bool:
        """Whether asking makes sense."""

    def take(self, kind: Kind, backend: Backend, seconds: float) -> Warm | None:
        """One of that kind, for a run of at most so many seconds; it is the caller's to destroy. None: none waits."""

    def keep(self, kind: Kind, backend: Backend, terms: Terms, seconds: float) -> None:
        """From now on some of that kind wait, on these terms; one that is taken may run for so many seconds."""


@dataclass
class _Shelf:
    """The containers of one kind."""

    kind: Kind
    backend: Backend
    terms: Terms
    seconds: float
    """That a run may take in one of them."""
    wanted: float
    """When one was last asked for, by the monotonic clock."""
    waiting: deque[Warm] = field(default_factory=deque)
    not_before: float = 0.0


class Pool:
    """Keeps containers waiting, by kind; a thread of its own makes and retires them."""

    def __init__(self, audit: AuditLog, most: int = MOST) -> None:
        """audit: has a record of every container that is made, and of every one that served no run. most: of all kinds
        together; then those wait that were asked for last."""
        makers()  # of this process's code, and not of what may be there later
        self._audit = audit
        self._most = most
        self._making: Container | None = None
        self._shelves: dict[str, _Shelf] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def there(self) -> bool:
        return not self._closed

    def take(self, kind: Kind, backend: Backend, seconds: float) -> Warm | None:
        return self.take_key(kind.key, seconds)

    def take_key(self, key: str, seconds: float) -> Warm | None:
        """`take`, by the kind's key."""
        unusable = []
        try:
            with self._changed:
                shelf = self._shelves.get(key)
                while shelf is not None and shelf.waiting:
                    warm = shelf.waiting.popleft()  # another is made once the run has started: `keep`
                    if warm.usable(seconds):
                        return warm
                    unusable.append(warm)
                return None
        finally:
            self.end(*unusable)

    def end(self, *unused: Warm) -> None:
        """Ends containers that no run had and none will have, and puts that on record."""
        for warm in unused:
            warm.destroy()
            self._note_end(warm.id)

    def keep(self, kind: Kind, backend: Backend, terms: Terms, seconds: float) -> None:
        """From now on some of that kind wait, until none was asked for in the time of the terms."""
        terms = terms.model_copy(update={"count": min(terms.count, self._most)})
        with self._changed:
            if self._closed or terms.count == 0:
                return
            shelf = self._shelves.setdefault(kind.key, _Shelf(kind, backend, terms, seconds, 0.0))
            shelf.terms, shelf.seconds, shelf.wanted = terms, seconds, time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="warm-pool", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def waiting(self, key: str | None = None) -> int:
        """How many wait, of one kind or of all."""
        with self._changed:
            return sum(len(shelf.waiting) for name, shelf in self._shelves.items() if key in (None, name))

    def full(self) -> bool:
        """Whether all wait that shall."""
        with self._changed:
            return all(len(shelf.waiting) >= shelf.terms.count for shelf in self._shelves.values())

    def close(self) -> None:
        """Ends them all. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._making is not None:
                self._making.kill()
        if self._thread is not None:
            self._thread.join()
        self._retire(list(self._shelves))

    def _work(self) -> None:
        while not self._closed:
            self._retire(self._tired())
            with self._changed:
                shelf = self._short()
                if shelf is None:
                    self._changed.wait(_LOOK)
                    continue
            try:
                warm = self._make(shelf)
            except (ExecutorError, AuditError, OSError):
                shelf.not_before = time.monotonic() + _AGAIN  # the next run meets the same, and says so
                continue
            finally:
                self._making = None
            with self._changed:
                shelf.waiting.append(warm)

    def _make(self, shelf: _Shelf) -> Warm:
        """One more, which is on record before it is there."""

        def begun(container: Container) -> None:
            with self._changed:
                self._making = container
                if self._closed:
                    raise InfrastructureError("nobody serves any more")

        execution = secrets.token_hex(8)
        self._audit.append("warm", execution=execution, **shelf.kind.terms())
        waits = shelf.terms.idle * (1 + shelf.terms.count)
        try:
            return shelf.kind.make(execution, shelf.backend, waits + shelf.seconds, begun)
        except BaseException:
            self._note_end(execution)
            raise

    def _note_end(self, execution: str) -> None:
        with contextlib.suppress(AuditError, OSError):  # whoever asks for the next one hears of it
            self._audit.append("warm-end", execution=execution)

    def _short(self) -> _Shelf | None:
        """The shelf that lacks most; none while there is no memory for more."""
        now = time.monotonic()
        short = [one for one in self._shelves.values() if len(one.waiting) < one.terms.count and one.not_before <= now]
        return None if self._closed or _scarce() else min(short, key=lambda one: len(one.waiting), default=None)

    def _tired(self) -> list[str]:
        """The kinds that nobody asks for any more, and those that were asked for least lately where there are too many; all,
        where memory is scarce."""
        now, scarce, left, tired = time.monotonic(), _scarce(), self._most, []
        with self._changed:
            for key, shelf in sorted(self._shelves.items(), key=lambda item: -item[1].wanted):
                left -= shelf.terms.count
                if scarce or left < 0 or now - shelf.wanted > shelf.terms.idle:
                    tired.append(key)
        return tired

    def _retire(self, kinds: list[str]) -> None:
        with self._changed:
            shelves = [self._shelves.pop(kind) for kind in kinds]
        for shelf in shelves:
            self.end(*shelf.waiting)


def _scarce() -> bool:
    import psutil

    memory = psutil.virtual_memory()
    return memory.available < _SCARCE * memory.total
