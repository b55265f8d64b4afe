"""The way out for experiments whose policy lists hosts: an HTTP proxy on the host, behind the relay in the container.

The container has no interface but loopback. PID 1 carries the bytes of connections to 127.0.0.1:3128 over the channel;
here they are read as proxy requests (RFC 9112), judged, and passed on. A name is resolved once and that address is
dialled; an address that is not public is refused unless it is listed itself. In a tunnel the first thing must be a TLS
ClientHello for the host of the tunnel (RFC 8446, RFC 6066). Every request is in the audit log, allowed or not.

What a listed host does with what it is sent cannot be controlled: list hosts that nobody can use as a relay.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h11

from executor.allowlist import AllowList, Refused, is_address, join_authority, split_authority
from executor.channel import Channel, frame
from executor.errors import ChannelError
from executor.tls import HelloError, HelloReader

VERDICT_SECONDS = 5.0
"""No verdict within this time is a refusal."""
MAX_REQUESTS = 1000
"""Of one run; those beyond are refused, and counted in one record."""
MAX_TUNNELS = 128
"""At once; our PID 1 opens 32, and may hear later than the host that one has ended."""
WINDOW = 1 << 18
"""Bytes of one tunnel under way in each direction, as in runner.py."""
_END_SECONDS = 5.0
_HEAD = 16 * 1024
_CHUNK = 65536
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
# RFC 9110, 7.6.1: these are for one hop. Upgrade among them, so that no request becomes something else.
_HOP = frozenset(
    [
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"upgrade",
        b"proxy-authorization",
        b"expect",
    ]
)

Record = Callable[..., object]
"""Writes an audit record: the event's name, and its fields."""
Resolve = Callable[[str, int], list[str]]


@dataclass
class Request:
    """What is known of one connection's request, for the audit record."""

    method: str = "?"
    host: str = ""
    port: int = 0
    address: str | None = None
    up: int = 0
    down: int = 0
    established: bool = False
    """Whether the experiment was answered already, so that a refusal can no more be put in words."""
    judged: bool = False
    """Whether a verdict is on record."""


def system_resolver(host: str, port: int) -> list[str]:
    """The addresses of a name, as the host's resolver gives them. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Egress:
    """The proxy of one run, in a thread of its own. `feed` takes the channel's frames; `close` ends every tunnel."""

    def __init__(self, channel: Channel, hosts: Iterable[str], record: Record, resolve: Resolve | None = None) -> None:
        self._channel = channel
        self._allowed = AllowList(hosts)
        self._record = record
        self._resolve = resolve or system_resolver
        self._tunnels: dict[int, Tunnel] = {}
        self._last = self._unrecorded = 0
        self._fed = self._taken = 0
        """Bytes, each counted by one thread alone: what is between them waits for the loop."""
        self.failed: str | None = None
        """Why none is let through any more, and the run must end: requests cannot be recorded, or PID 1 ignores the window."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="egress", daemon=True)
        self._thread.start()

    def feed(self, kind: bytes, payload: bytes) -> None:
        """A frame of the container's about a tunnel. Raises ChannelError for one that is malformed."""
        if len(payload) < 4 or (kind == b"U" and len(payload) != 8):
            raise ChannelError("the container sent a tunnel frame that is malformed")
        (number,) = struct.unpack_from(">I", payload)
        self._fed += len(payload)
        if self._fed - self._taken > MAX_TUNNELS * WINDOW:
            raise ChannelError("the container sent more into its tunnels than their windows")
        self._loop.call_soon_threadsafe(self._take, kind, number, payload[4:])

    def close(self) -> None:
        """Ends every tunnel, and writes what is missing in the audit log."""
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._end()))
        self._thread.join(timeout=2 * _END_SECONDS)
        if not self._thread.is_alive():  # it may hang on a container that does not read, and ends with that
            self._loop.close()
        if self._unrecorded:
            self._write("network-flood", refused=self._unrecorded, recorded=MAX_REQUESTS)

    async def _end(self) -> None:
        tasks = [tunnel.task for tunnel in self._tunnels.values() if tunnel.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_SECONDS)
        self._loop.stop()

    def _take(self, kind: bytes, number: int, data: bytes) -> None:
        self._taken += 4 + len(data)
        tunnel = self._tunnels.get(number)
        if tunnel is None and len(self._tunnels) == MAX_TUNNELS:
            self.failed = "the container opened more tunnels at once than it may"
            return
        if tunnel is None:
            if kind != b"T" or not data or number <= self._last:
                return  # what was still on its way when its tunnel ended
            self._last = number
            tunnel = self._tunnels[number] = Tunnel(number, self._channel)
            serve = self._serve if number <= MAX_REQUESTS else self._turn_away
            tunnel.task = self._loop.create_task(serve(tunnel))
        try:
            tunnel.hear(kind, data)
        except ChannelError as error:
            self.failed = str(error)

    async def _turn_away(self, tunnel: "Tunnel") -> None:
        """A run that asks without end shall not fill the audit log: these are counted."""
        self._unrecorded += 1
        await self._finish(tunnel, _refusal("too many requests", "429 Too Many Requests"))

    async def _finish(self, tunnel: "Tunnel", last_words: bytes) -> None:
        with contextlib.suppress(ChannelError):
            await tunnel.write(last_words)
            tunnel.close()
        del self._tunnels[tunnel.number]

    async def _serve(self, tunnel: "Tunnel") -> None:
        """One connection, from its first byte to its last."""
        request, began, last_words = Request(), time.monotonic(), b""
        try:
            try:
                async with asyncio.timeout(VERDICT_SECONDS):
                    proxied = await self._judge(tunnel, request)
            except TimeoutError:
                raise Refused("network.timeout", f"no verdict within {VERDICT_SECONDS:g} s") from None
            await self._pass_on(tunnel, request, proxied)
        except Refused as refusal:
            self._note(request, allow=False, rule=refusal.rule, reason=refusal.reason)
            last_words = _refusal(refusal.reason)
        except (OSError, h11.ProtocolError, ChannelError) as error:
            self._note(request, allow=False, rule="network.failed", reason=f"{type(error).__name__}: {error}"[:200])
            last_words = _refusal("the connection failed", "502 Bad Gateway")
        finally:
            if not request.judged:
                self._note(request, allow=False, rule="network.aborted", reason="broken off before there was a verdict")
            seconds = round(time.monotonic() - began, 3)
            counts = {"bytes_up": request.up, "bytes_down": request.down, "seconds": seconds}
            self._write("network-end", host=request.host[:255], port=request.port, **counts)
            await self._finish(tunnel, b"" if request.established else last_words)

    async def _judge(self, tunnel: "Tunnel", request: Request) -> "Proxied":
        """Reads the request's head and decides. Raises Refused."""
        inner = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        head = await _event(inner, tunnel)
        if not isinstance(head, h11.Request):
            raise Refused("network.request", "no HTTP request")
        request.method = head.method.decode("ascii", "replace")[:16]
        target = head.target.decode("ascii", "replace")
        if head.method == b"CONNECT":
            request.host, request.port = _told(target, 443)
            host, port = self._allowed.name(target)
            await self._locate(request, host, port)
            await tunnel.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            request.established = True
            hello = await _client_hello(tunnel, inner.trailing_data[0])
            if hello.name != (None if is_address(host) else host):  # RFC 6066: an address is no server name
                raise Refused("network.sni", f"TLS for {hello.name or 'no name'} in a tunnel to {host}")
            return Proxied(await self._dial(request), bytes(hello.data))
        if head.method not in _METHODS or not target.lower().startswith("http://"):
            raise Refused("network.request", f"{request.method} of this form is not passed on")
        authority, slash, path = target[len("http://") :].partition("/")
        request.host, request.port = _told(authority, 80)
        host, port = self._allowed.name(authority, 80)
        if any(split_authority(value.decode("ascii", "replace"), 80) != (host, port) for value in _hosts(head)):
            raise Refused("network.host", "the Host header names another host")
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in head.headers}:
            # RFC 9112, 6.3: two hops may differ in where such a request ends, and what is behind it is another one.
            raise Refused("network.request", "both a length and a transfer coding")
        await self._locate(request, host, port)
        outer = h11.Request(
            method=head.method, target=(slash + path or "/").encode(), headers=_forwarded(head, host, port)
        )
        return Proxied(await self._dial(request), h11.Connection(h11.CLIENT).send(outer) or b"", inner, outer)

    async def _locate(self, request: Request, host: str, port: int) -> None:
        """Resolves the name, once: what was judged is what is dialled. Raises Refused, OSError."""
        found = await self._loop.run_in_executor(None, self._resolve, host, port)
        if not found:
            raise Refused("network.address", f"{host} has no address")
        request.address = self._allowed.address(found[0], port)

    async def _dial(self, request: Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The audit record is there before the first packet."""
        self._note(request, allow=True, rule="network.allowlist", reason="listed")
        if self.failed is not None:
            raise Refused("network.failed", "nothing is let through any more")
        return await asyncio.open_connection(request.address, request.port)

    async def _pass_on(self, tunnel: "Tunnel", request: Request, proxied: "Proxied") -> None:
        async def up() -> None:
            proxied.writer.write(proxied.first)
            request.up += len(proxied.first)
            async for data in proxied.body(tunnel):
                proxied.writer.write(data)
                request.up += len(data)
                await proxied.writer.drain()
            if proxied.request is None and proxied.writer.can_write_eof():
                proxied.writer.write_eof()

        async def down() -> None:
            while data := await proxied.reader.read(_CHUNK):
                request.down += len(data)
                request.established = True
                await tunnel.write(data)

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await tasks[1]  # when the far end is done, nothing that still comes from the experiment matters
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            proxied.writer.close()

    def _note(self, request: Request, **verdict: Any) -> None:
        about = {"method": request.method, "host": request.host[:255], "port": request.port, "address": request.address}
        self._write("network", **about, **verdict)
        request.judged = True

    def _write(self, event: str, **fields: Any) -> None:
        try:
            self._record(event, **fields)
        except OSError as error:
            self.failed = str(error)


class Tunnel:
    """One connection of the experiment's: a stream of what it sent, and a window for what it is sent."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.number = number
        self.task: asyncio.Task[None] | None = None
        self._channel = channel
        self._id = struct.pack(">I", number)
        self._incoming = asyncio.StreamReader()
        self._unread = self._under_way = 0
        self._room = asyncio.Event()
        self._room.set()

    def hear(self, kind: bytes, data: bytes) -> None:
        """A frame of the container's. Raises ChannelError for bytes beyond the window, and keeps none of them."""
        if kind == b"T" and data:
            # Our PID 1 waits for its credit; a stream without a transport would take whatever comes.
            if self._unread + len(data) > WINDOW:
                raise ChannelError("the container sent more into a tunnel than its window")
            self._unread += len(data)
            self._incoming.feed_data(data)
        elif kind == b"T":
            self._incoming.feed_eof()
        elif kind == b"U":
            self._under_way -= int(struct.unpack(">I", data)[0])
            if self._under_way < WINDOW:
                self._room.set()
        elif kind == b"V" and self.task is not None:
            # In a while: a task that is cancelled before its first step leaves no record.
            asyncio.get_running_loop().call_soon(self.task.cancel)

    async def read(self) -> bytes:
        """What came; b"" at the end. Reading gives the container room for more."""
        data = await self._incoming.read(_CHUNK)
        if data:
            self._unread -= len(data)
            self._channel.send(frame(b"U", self._id + struct.pack(">I", len(data))))
        return data

    async def write(self, data: bytes) -> None:
        """Sends, as fast as the experiment takes it."""
        view = memoryview(data)
        while view:
            await self._room.wait()
            part = view[: min(_CHUNK, WINDOW - self._under_way)]
            self._under_way += len(part)
            if self._under_way >= WINDOW:
                self._room.clear()
            self._channel.send(frame(b"T", self._id + part))
            view = view[len(part) :]

    def close(self) -> None:
        """Nothing more comes: PID 1 closes the connection when it has passed on what was written."""
        self._channel.send(frame(b"T", self._id))


@dataclass
class Proxied:
    """A request that may pass: the connection to its host, and what is sent there first."""

    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    first: bytes
    inner: h11.Connection | None = None
    request: h11.Request | None = None
    """Of a plain request, whose body is framed; None in a tunnel."""

    @property
    def reader(self) -> asyncio.StreamReader:
        return self.connection[0]

    @property
    def writer(self) -> asyncio.StreamWriter:
        return self.connection[1]

    async def body(self, tunnel: Tunnel) -> Any:
        """The rest of what the experiment sends: all of a tunnel; of a plain request its body, framed anew, and no more."""
        if self.inner is None or self.request is None:
            while data := await tunnel.read():
                yield data
            return
        outer = h11.Connection(h11.CLIENT)
        outer.send(self.request)
        while True:
            event = await _event(self.inner, tunnel)
            if isinstance(event, h11.Data | h11.EndOfMessage):
                yield outer.send(event) or b""
            if not isinstance(event, h11.Data):
                return


async def _event(connection: h11.Connection, tunnel: Tunnel) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await tunnel.read())
    return event


async def _client_hello(tunnel: Tunnel, data: bytes) -> HelloReader:
    """Reads up to the end of a ClientHello. Raises Refused."""
    hello = HelloReader()
    while True:
        try:
            if hello.feed(data):
                return hello
        except HelloError as error:
            raise Refused("network.tls", str(error)) from None
        data = await tunnel.read()
        if not data:
            raise Refused("network.tls", "the tunnel ended before its ClientHello did")


def _told(authority: str, default_port: int) -> tuple[str, int]:
    """Host and port for the record, whatever they are."""
    try:
        return split_authority(authority, default_port)
    except Refused:
        return ascii(authority[:200]), 0


def _hosts(request: h11.Request) -> list[bytes]:
    return [value for name, value in request.headers if name == b"host"]


def _forwarded(request: h11.Request, host: str, port: int) -> list[tuple[bytes, bytes]]:
    """The request's headers for the next hop, which is asked to close: one request for each connection."""
    named = {
        word.strip().lower() for name, value in request.headers if name == b"connection" for word in value.split(b",")
    }
    kept = [(name, value) for name, value in request.headers if name not in _HOP | named | {b"host"}]
    return [(b"host", join_authority(host, port).removesuffix(":80").encode()), *kept, (b"connection", b"close")]


def _refusal(reason: str, status: str = "403 Forbidden") -> bytes:
    text = f"labsandbox: {reason}\n".encode("ascii", "replace")
    head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
    return head.encode() + text
