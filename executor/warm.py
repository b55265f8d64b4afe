"""Containers that are there before they are asked for: made under exactly the terms of runs to come, used once each.

A pool belongs to one process, and so to one user. A run finds in it a container that it would have made itself, or none:
what went into making one is its kind. Nothing of any experiment was in it before; its interpreter has loaded modules of the
image and waits on the channel.
"""

import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

import psutil

from executor.backends.base import Backend, Container, ContainerSpec
from executor.channel import Connection, exchange, frame, opening
from executor.conversation import START_GRACE
from executor.errors import ExecutorError
from executor.experiment import ImageRef
from executor.job import library
from executor.ownership import Owner
from policies.audit import AuditError, AuditLog
from policies.model import Warm as Terms

_TOLD = {"wall", "output", "metrics", "artifacts", "artifact_files"}
"""Limits that the host and PID 1 count: they come with the job."""
_LOOK = 5.0
"""Seconds between two looks at the memory that is left."""
_SCARCE = 0.1
"""Share of the machine's memory; with less available, nothing is kept waiting."""
_AGAIN = 30.0
"""Seconds until another attempt, where a container could not be made."""


@dataclass(frozen=True)
class Kind:
    """What a container is made from, and what is loaded in it: a run takes one of exactly its own kind."""

    spec: ContainerSpec
    """Its id and owner are those of the container that is made."""
    runtime: str
    network: bool
    ahead: Mapping[str, Any]
    """What `ahead_of` gives."""

    @cached_property
    def _opening(self) -> bytes:
        return b"".join(opening(library(self.network)))

    @cached_property
    def key(self) -> str:
        """Equal for containers that could be each other. What is told with the job is no part of it."""
        limits = self.spec.limits.model_dump(mode="json", exclude=_TOLD)
        made_from = [self.spec.image.model_dump(), self.spec.isolation, sorted(self.spec.unheld), self.runtime]
        ours = sha256(self._opening).hexdigest()  # another version of labsandbox makes other containers
        return json.dumps([limits, made_from, ours, self.ahead], sort_keys=True)

    def make(self, backend: Backend, seconds: float) -> "Warm":
        """A container that waits, and may for so long. Raises ExecutorError, and leaves nothing."""
        spec = replace(self.spec, execution_id=secrets.token_hex(8), owner=Owner.this_process(seconds))
        container = backend.create(spec)
        try:
            connection = container.start()
            try:
                greeting = json.loads(exchange(connection, [self._opening], b"H", START_GRACE))
                exchange(connection, [frame(b"P", json.dumps(self.ahead).encode())], b"R", START_GRACE)
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

    make: Callable[[], Warm]
    terms: Terms
    wanted: float
    waiting: deque[Warm] = field(default_factory=deque)
    not_before: float = 0.0


class Pool:
    """Keeps containers waiting, by kind; a thread of its own makes and retires them."""

    def __init__(self, audit: AuditLog) -> None:
        """audit: has a record of every container that is made."""
        self._audit = audit
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
            for warm in unusable:
                warm.destroy()

    def keep(self, kind: Kind, backend: Backend, terms: Terms, seconds: float) -> None:
        """From now on some of that kind wait, until none was asked for in the time of the terms."""
        waits = terms.idle * (1 + terms.count)

        def make() -> Warm:
            return kind.make(backend, waits + seconds)

        with self._changed:
            if self._closed or terms.count == 0:
                return
            shelf = self._shelves.setdefault(kind.key, _Shelf(make, terms, 0.0))
            shelf.make, shelf.terms, shelf.wanted = make, terms, time.monotonic()
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
                warm = self._recorded(shelf.make())
            except (ExecutorError, AuditError, OSError):
                shelf.not_before = time.monotonic() + _AGAIN  # the next run meets the same, and says so
                continue
            with self._changed:
                shelf.waiting.append(warm)

    def _recorded(self, warm: Warm) -> Warm:
        try:
            self._audit.append("warm", execution=warm.id, container=warm.container.id, image=warm.image.model_dump())
        except BaseException:
            warm.destroy()
            raise
        return warm

    def _short(self) -> _Shelf | None:
        """The shelf that lacks most; none while there is no memory for more."""
        now = time.monotonic()
        short = [one for one in self._shelves.values() if len(one.waiting) < one.terms.count and one.not_before <= now]
        return None if self._closed or _scarce() else min(short, key=lambda one: len(one.waiting), default=None)

    def _tired(self) -> list[str]:
        """The kinds that nobody asks for any more; all, where memory is scarce."""
        now, scarce = time.monotonic(), _scarce()
        with self._changed:
            return [kind for kind, shelf in self._shelves.items() if scarce or now - shelf.wanted > shelf.terms.idle]

    def _retire(self, kinds: list[str]) -> None:
        with self._changed:
            shelves = [self._shelves.pop(kind) for kind in kinds]
        for shelf in shelves:
            for warm in shelf.waiting:
                warm.destroy()


def _scarce() -> bool:
    memory = psutil.virtual_memory()
    return memory.available < _SCARCE * memory.total
