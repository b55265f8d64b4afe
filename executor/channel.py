"""The frames between host and container: bytes in, checked messages out.

The far end is our own PID 1, but it lives beside hostile code, so nothing is taken on trust: frames are bounded,
kinds are known, JSON is validated. `runner.py` lists the frames.
"""

import json
import marshal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Protocol

from executor.errors import ChannelError

_HEADER = struct.Struct(">cI")
MAX_FRAME = 1 << 20
_KINDS = frozenset(b"HRSOEMNFDZAXTUV")
_QUEUED = 16 << 20
"""Bytes waiting to be written to the container before `send` waits too; more than all its tunnels may have under way."""
_SEND_TIMEOUT = 60.0
_CLOSE_GRACE = 2.0
_RUNNER = Path(__file__).with_name("runner.py")

# Reads the runner from standard input: which Python it was compiled for, as that, and as source for any other.
LOAD = (
    "import marshal,os,sys\n"
    "def take(n):\n"
    " b=b''\n"
    " while len(b)<n:\n"
    "  p=os.read(0,n-len(b))\n"
    "  if not p: raise SystemExit('no runner came')\n"
    "  b+=p\n"
    " return b\n"
    "tag,code,source=[take(int(take(8))) for _ in range(3)]\n"
    "same=tag.decode()==sys.implementation.cache_tag\n"
    "exec(marshal.loads(code) if same else compile(source,'runner.py','exec'))\n"
)
EMPTIED = f"import os,sys;os.execve(sys.executable,[sys.executable,'-I','-S','-c',{LOAD!r}],{{}})"
"""The same in an environment of nothing: what the image or the engine set is gone from /proc/1/environ."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame: kind, length, payload."""
    return _HEADER.pack(kind, len(payload)) + payload


def opening(library: Mapping[str, bytes]) -> Iterator[bytes]:
    """What every container is sent first: the runner, and the files of the `lab` library."""
    tag = str(sys.implementation.cache_tag).encode()
    for part in (tag, _compiled(_RUNNER), _RUNNER.read_bytes()):
        yield f"{len(part):08d}".encode() + part
    yield from files(library)


@cache
def _compiled(path: Path) -> bytes:
    """The runner's code for this Python, which the container's often is: compiling is half of its start."""
    loader = SourceFileLoader("executor.runner", str(path))  # which keeps it in __pycache__
    return marshal.dumps(loader.get_code("executor.runner"))


def files(library: Mapping[str, bytes]) -> Iterator[bytes]:
    """Files beside the code, by path."""
    for name, data in library.items():
        yield frame(b"L", name.encode() + b"\0" + data)


def assignment(job: Mapping[str, Any], code: str, wheels: Iterable[Path] = ()) -> Iterator[bytes]:
    """What is one experiment's own: its wheels, its code, its job."""
    for wheel in wheels:
        with wheel.open("rb") as file:
            while data := file.read(MAX_FRAME // 2):
                yield frame(b"W", wheel.name.encode() + b"\0" + data)
    yield frame(b"C", code.encode("utf-8", "surrogatepass"))
    yield frame(b"J", json.dumps(job).encode())


class FrameReader:
    """Cuts a byte stream into frames. Feed it, then take what is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields each whole frame as (kind, payload). Raises ChannelError on a frame that cannot be."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER.size:
                kind, length = _HEADER.unpack_from(self._buffer, start)
                if kind[0] not in _KINDS or length > MAX_FRAME:
                    raise ChannelError("the container sent something that is not a frame")
                end = start + _HEADER.size + length
                if len(self._buffer) < end:
                    return
                yield kind, bytes(self._buffer[start + _HEADER.size : end])
                start = end
        finally:
            del self._buffer[:start]

    @property
    def torn(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._buffer)


class Connection(Protocol):
    """A container's standard streams, as a backend opens them. Blocking; closed from any thread."""

    def send(self, data: bytes) -> None:
        """Writes to PID 1's standard input. Raises OSError when it is gone."""

    def wait(self, seconds: float) -> bool:
        """Whether something came, or the end, within that time; `receive` has it then."""

    def receive(self) -> tuple[str, bytes]:
        """The next bytes as ("stdout" or "stderr", data); data is empty at the end."""

    def descriptors(self) -> list[int]:
        """What another process needs to go on with it: `Backend.adopt`."""

    def release(self) -> None:
        """Lets go of it here, where another process goes on with it."""

    def close(self) -> None:
        """Ends both directions; the container's PID 1 sees its input end."""


def exchange(connection: Connection, parts: Iterable[bytes], kind: bytes, seconds: float) -> bytes:
    """Sends, and waits for the one frame of that kind that answers: no thread of ours is left on the connection, so that
    it may be another's afterwards. Raises ChannelError."""
    reader, diagnosis, deadline = FrameReader(), b"", time.monotonic() + seconds
    try:
        for part in parts:
            connection.send(part)
        while connection.wait(deadline - time.monotonic()):
            stream, data = connection.receive()
            if not data:
                said = diagnosis.decode("utf-8", "replace").strip().splitlines()
                raise ChannelError(
                    f"the container ended before its experiment came{f': {said[-1][-300:]}' if said else ''}"
                )
            if stream == "stderr":
                diagnosis = (diagnosis + data)[-4096:]
                continue
            for came, payload in list(reader.feed(data)):
                if came != kind or reader.torn:
                    raise ChannelError(f"the container sent {came!r} where {kind!r} was due")
                return payload
    except (OSError, ValueError) as error:
        raise ChannelError(f"the connection to the container broke: {error}") from None
    raise ChannelError(f"the container did not answer within {seconds:g} s")


class Channel:
    """Frames over a connection, read and written by threads of its own so that every wait has a deadline.

    No more than a few frames are held: a flood stops in the container's pipes, not in the host's memory.
    """

    _HELD = 64

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: deque[tuple[bytes, bytes] | BaseException] = deque()
        self._outgoing: deque[bytes] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._closed = False
        self._deaf: str | None = None
        self.diagnosis = b""
        """What PID 1 itself wrote to its standard error: the reason when it dies."""
        self._threads = [
            threading.Thread(target=work, name=f"channel-{work.__name__}", daemon=True)
            for work in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Queues bytes for the container, from any thread. Raises ChannelError when it is gone or does not read."""
        with self._changed:
            fits = self._changed.wait_for(lambda: self._queued < _QUEUED or self._deaf is not None, _SEND_TIMEOUT)
            if self._deaf is not None:
                raise ChannelError(self._deaf)
            if not fits:
                raise ChannelError(f"the container did not read for {_SEND_TIMEOUT:g} s")
            self._outgoing.append(data)
            self._queued += len(data)
            self._changed.notify_all()

    def next(self, timeout: float) -> tuple[bytes, bytes] | None:
        """The next frame, or None when none came within `timeout` seconds. Raises ChannelError at the end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._frames), max(0.0, timeout))
            if not self._frames:
                return None
            item = self._frames[0]
            if isinstance(item, BaseException):
                raise item
            self._changed.notify_all()
            return self._frames.popleft()  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the connection and its threads; what was not written yet is dropped."""
        with self._changed:
            self._closed = True
            self._deaf = self._deaf or "the channel is closed"
            self._changed.notify_all()
        self._connection.close()
        end = time.monotonic() + _CLOSE_GRACE
        for thread in self._threads:  # one that hangs on a container that does not read ends when that is destroyed
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._outgoing))
                if self._closed:
                    return
                data = self._outgoing.popleft()
            try:
                self._connection.send(data)
            except (OSError, ValueError) as error:
                with self._changed:
                    reason = getattr(error, "strerror", None) or error
                    self._deaf = f"the container is gone: {reason}"
                    self._changed.notify_all()
                return
            with self._changed:
                self._queued -= len(data)
                self._changed.notify_all()

    def _read(self) -> None:
        reader = FrameReader()
        try:
            while True:
                stream, data = self._connection.receive()
                if not data:
                    raise ChannelError("the container ended before its experiment did")
                if stream == "stderr":
                    self.diagnosis = (self.diagnosis + data)[-4096:]
                    continue
                for item in reader.feed(data):
                    self._put(item)
        except ChannelError as error:
            self._put(error)
        except (OSError, ValueError) as error:
            self._put(ChannelError(f"the connection to the container broke: {error}"))

    def _put(self, item: tuple[bytes, bytes] | BaseException) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._frames) < self._HELD)
            if not self._closed:
                self._frames.append(item)
            self._changed.notify_all()
