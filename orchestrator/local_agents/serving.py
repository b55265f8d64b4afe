"""Runs the local server in this process, for as long as it is needed."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from orchestrator.local_agents.engine import Engine
from orchestrator.local_agents.server import create_app
from orchestrator.local_agents.store import AgentStore

_START_SECONDS = 10.0


@contextmanager
def serve_locally(engine: Engine, store: AgentStore) -> Iterator[str]:
    """Serves on a free port of 127.0.0.1 and yields the base address; stops at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(engine, store), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
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
