"""Containers that wait in one process and run for another: a service's pool, for the same user's other processes.

On a Unix socket that only its user can reach: a connection is one request, a line of JSON, and one answer, another, with
descriptors where a container comes along (SCM_RIGHTS, unix(7)). Whoever can go on with it says so by a byte, and the service
watches over it for as long as that connection stands: with whoever took it, the container ends. One that nobody took served no run.
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executor.backends.base import Backend, ContainerSpec
from executor.errors import ExecutorError, InfrastructureError
from executor.experiment import ImageRef
from executor.ownership import Owner
from executor.warm import Kind, Pool, Warm
from policies.model import Isolation, Limits
from policies.model import Warm as Terms

_MAX_LINE = 1 << 20
_TIMEOUT = 5.0
"""Seconds for a request or an answer; what comes later is no gain."""
_BREATH = 0.1
"""Seconds until the next attempt to take a request, where one failed."""
_TAKEN = b"+"
"""What a client says that can go on with the container it was given."""
_CREDENTIALS = struct.Struct("3i")

Recipe = Mapping[str, str | None]


class _Kind(BaseModel):
    """A kind, as it is told."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    limits: Limits
    image: ImageRef
    isolation: Isolation
    unheld: list[str]
    recipe: dict[str, str | None]
    network: bool
    ahead: dict[str, Any]
    key: str

    @classmethod
    def of(cls, kind: Kind) -> "_Kind":
        spec = kind.spec
        return cls(
            limits=spec.limits, image=spec.image, isolation=spec.isolation, unheld=sorted(spec.unheld),
            recipe=dict(kind.recipe), network=kind.network, ahead=dict(kind.ahead), key=kind.key,
        )  # fmt: skip

    def kind(self) -> Kind:
        """Raises ValueError where it is another here: the asker is another version."""
        owner = Owner.this_process(0)
        spec = ContainerSpec("", self.limits, owner, self.image, self.isolation, frozenset(self.unheld))
        kind = Kind(spec, self.recipe, self.network, self.ahead)
        if kind.key != self.key:
            raise ValueError("another version of labsandbox")
        return kind


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    take: str = ""
    """A kind's key."""
    keep: _Kind | None = None
    terms: Terms = Terms()
    seconds: float = 0.0


class _Given(BaseModel):
    """A container, as the service tells it."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    container: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
    greeting: dict[str, Any]
    image: ImageRef
    until: float


class PoolServer:
    """Serves a pool on a socket, until it is closed."""

    def __init__(self, path: Path, pool: Pool, backend_of: Callable[[Recipe], Backend]) -> None:
        """backend_of: a backend that is prepared. Raises OSError where the socket cannot be had."""
        self._pool = pool
        self._backend_of = backend_of
        self._backends: dict[str, Backend] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _address(path) as address:
                self._listener.bind(address)
        finally:
            os.umask(before)
        self._path = path
        self._listener.listen(64)
        threading.Thread(target=self._serve, name="pool-server", daemon=True).start()

    def close(self) -> None:
        """Takes no more requests. What was given away goes on."""
        self._closed = True
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(_BREATH)  # no descriptor was free, or the client has gone: others come
                continue
            threading.Thread(target=self._answer, args=(connection,), name="pool-client", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_TIMEOUT)
            if not _same_user(connection):
                return
            try:
                request = _Request.model_validate_json(_line(connection))
                if request.keep is not None:
                    self._keep(request, request.keep)
                warm = self._pool.take_key(request.take, request.seconds) if request.take else None
            except (ValidationError, ValueError, ExecutorError) as error:
                connection.sendall(_packed({"problem": str(error)[:300]}))
                return
            if warm is None:
                connection.sendall(_packed({}))
            else:
                self._give(connection, warm)

    def _keep(self, request: _Request, told: _Kind) -> None:
        name = json.dumps(told.recipe, sort_keys=True)
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._backend_of(told.recipe)
            backend = self._backends[name]
        if backend.recipe() != told.recipe:
            raise InfrastructureError("another engine")
        if backend.prepare(lambda text: None) != told.image:
            raise InfrastructureError("another image")
        self._pool.keep(told.kind(), backend, request.terms, request.seconds)

    def _give(self, connection: socket.socket, warm: Warm) -> None:
        taken = False
        try:
            given = _Given(
                id=warm.id, container=warm.container.id, greeting=warm.greeting, image=warm.image, until=warm.until
            )
            payload = given.model_dump_json().encode() + b"\n"
            sent = socket.send_fds(connection, [payload], warm.connection.descriptors())
            connection.sendall(payload[sent:])
            warm.connection.release()
            connection.settimeout(None)
            taken = connection.recv(1) == _TAKEN
            if taken:
                connection.recv(1)  # the other end is closed when the run is over, or its process
        finally:
            if taken:
                warm.container.destroy()
            else:
                self._pool.end(warm)


class RemotePool:
    """The pool of a service, as a supply."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def there(self) -> bool:
        return self._path.exists()

    def take(self, kind: Kind, backend: Backend, seconds: float) -> Warm | None:
        connection = self._ask(_Request(take=kind.key, seconds=seconds))
        if connection is None:
            return None
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, _MAX_LINE, 3)
            while not data.endswith(b"\n"):
                more = connection.recv(_MAX_LINE)
                if not more:
                    raise ValueError("the service went away")
                data += more
            given = _Given.model_validate_json(data)
            container, streams = backend.adopt(given.id, given.container, Owner.this_process(seconds), descriptors)
        except (OSError, ValueError, InfrastructureError):  # none waits, or it is gone
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            return None
        with contextlib.suppress(OSError):  # a service that is gone need not know
            connection.sendall(_TAKEN)
        return Warm(given.id, container, streams, given.greeting, given.image, given.until, connection)

    def keep(self, kind: Kind, backend: Backend, terms: Terms, seconds: float) -> None:
        request = _Request(keep=_Kind.of(kind), terms=terms, seconds=seconds)
        if (connection := self._ask(request)) is not None:
            connection.close()

    def _ask(self, request: _Request) -> socket.socket | None:
        """The connection on which an answer will come; None where nobody serves."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT)
        try:
            with _address(self._path) as address:
                connection.connect(address)
            if not _same_user(connection):
                raise PermissionError("another user serves")
            connection.sendall(request.model_dump_json().encode() + b"\n")
            return connection
        except OSError:
            connection.close()
            return None


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Of a socket at a path of any length: an address has 107 characters at most (unix(7)). Raises OSError."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _same_user(connection: socket.socket) -> bool:
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid) == os.getuid()


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_LINE:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data


def _packed(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
