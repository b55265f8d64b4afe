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
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 31457280\r\n\r\n{"x":"')
    for _ in range(480):
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
