"""An agent server that misbehaves on demand, on raw sockets: each fault is what some real server has done."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Fault = Callable[[socket.socket, int], None]
"""Given the connection and how many requests came before."""

GOOD = {"success": True, "agent": "code", "result": {"code": "print(1)\n"}}


def answer(body: bytes | object, status: str = "200 OK", kind: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP response."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(raw)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


HTML = answer(b"<html><h1>It works!</h1></html>", kind="text/html")


def always(response: bytes) -> Fault:
    return lambda connection, before: connection.sendall(response)


def first(count: int, bad: bytes, good: bytes) -> Fault:
    return lambda connection, before: connection.sendall(bad if before < count else good)


def stall(connection: socket.socket, before: int) -> None:
    time.sleep(60)


def drip(connection: socket.socket, before: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        connection.sendall(b" ")
        time.sleep(0.1)


def drip_headers(connection: socket.socket, before: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(600):
        connection.sendall(b"x")
        time.sleep(0.1)


def hang_up(connection: socket.socket, before: int) -> None:
    return


def huge(connection: socket.socket, before: int) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 41943040\r\n\r\n{"x":"')
    for _ in range(640):
        connection.sendall(b"y" * 65536)


class FaultyServer:
    """Serves one fault to every request; `requests` counts them, and `heard` keeps what was asked."""

    def __init__(self, fault: Fault) -> None:
        self.requests = 0
        self.heard: list[bytes] = []
        self._fault = fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            before, self.requests = self.requests, self.requests + 1
            threading.Thread(target=self._serve, args=(connection, before), daemon=True).start()

    def _serve(self, connection: socket.socket, before: int) -> None:
        with connection:
            try:
                self.heard.append(connection.recv(1 << 20))
                self._fault(connection, before)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


@contextmanager
def faulty(fault: Fault) -> Iterator[FaultyServer]:
    """A server with that fault, for as long as this lasts."""
    server = FaultyServer(fault)
    try:
        yield server
    finally:
        server.close()


# ---- a whole service of which some endpoints misbehave ----

CODE = "/api/agents/code"
INVOKE = "/api/agents/invoke-user-agent"
REGISTER = "/api/agents/register"
CHALLENGE = "/api/auth/challenge"
PROGRAM = "import lab\nlab.compare(lambda arm, seed: ord(arm) + seed / 9, ['a', 'b'], range(7))\n"


def good_answer(path: str) -> bytes:
    """What the service says when it is well."""
    if path.startswith("/api/agents/my-agents"):
        return answer({"success": True, "result": {"userId": "u", "count": 0, "agents": []}})
    results: dict[str, object] = {
        CODE: {"code": PROGRAM},
        INVOKE: {"response": "Vote: yes\nsaid well"},
        REGISTER: {"message": "ok", "agent": {"name": "any"}},
        CHALLENGE: {"challenge": "00ff" * 16, "expiresIn": 300},
    }
    return answer({"success": True, "result": results.get(path, {})})


class FaultyService(FaultyServer):
    """Answers well, except where it was told how to misbehave."""

    def __init__(self, faults: dict[str, Fault]) -> None:
        self._faults = faults
        self._counts: dict[str, int] = {}
        super().__init__(hang_up)

    def _serve(self, connection: socket.socket, before: int) -> None:
        with connection:
            try:
                request = _whole_request(connection)
                self.heard.append(request)
                path = request.split(b" ", 2)[1].decode()
                count = self._counts[path] = self._counts.get(path, 0) + 1
                if (fault := self._faults.get(path)) is not None:
                    fault(connection, count - 1)
                else:
                    connection.sendall(good_answer(path))
            except OSError:
                return

    def asked(self, path: str) -> int:
        return self._counts.get(path, 0)


def _whole_request(connection: socket.socket) -> bytes:
    """Head and body: a connection that is closed with bytes unread resets what was answered."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length and (part := connection.recv(65536)):
        body += part
    return head + b"\r\n\r\n" + body


@contextmanager
def faulty_service(faults: dict[str, Fault]) -> Iterator[FaultyService]:
    """Serves for as long as this lasts."""
    service = FaultyService(faults)
    try:
        yield service
    finally:
        service.close()
