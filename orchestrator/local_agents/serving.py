"""Runs the local server: in this process for as long as it is needed, or as a command of its own."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from orchestrator.agents.keys import SigningKey
from orchestrator.errors import UsageProblem
from orchestrator.local_agents.engine import Engine
from orchestrator.local_agents.server import LOOPBACK_HOSTS, create_app
from orchestrator.local_agents.store import AgentStore

_START_SECONDS = 10.0


@contextmanager
def serve_locally(engine: Engine, store: AgentStore, key: SigningKey | None = None) -> Iterator[str]:
    """Serves on a free port of 127.0.0.1 and yields the base address; stops at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(_config(engine, store, LOOPBACK_HOSTS, key))
    thread = threading.Thread(target=server.run, args=([listener],), name="local-agents", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the local agent server did not start")
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listener.close()


def serve_until_stopped(
    listener: socket.socket, engine: Engine, store: AgentStore, hosts: tuple[str, ...], key: SigningKey | None
) -> None:
    """Serves on `listener` until SIGINT or SIGTERM."""
    uvicorn.Server(_config(engine, store, hosts, key)).run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageProblem where the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageProblem(f"cannot listen on {host}:{port}: {reason}") from None
    return listener


# Whoever is given up on in the middle of an answer would else have its trace printed on the user's terminal.
logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
logging.getLogger("uvicorn.error").propagate = False


def _config(engine: Engine, store: AgentStore, hosts: tuple[str, ...], key: SigningKey | None) -> uvicorn.Config:
    app = create_app(engine, store, hosts, key)
    return uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, server_header=False
    )
