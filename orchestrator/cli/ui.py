"""`labsandbox ui`: the dashboard, served to this machine's user."""

import contextlib
import re
import secrets
import socket
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, note
from orchestrator.errors import UsageProblem


def ui(
    port: Annotated[int, typer.Option("--port", help="0: any free one.", min=0, max=65535)] = 8787,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    results: options.Results = Path("results"),
    agents: options.Agents = "auto",
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name in requests' Host header.")
    ] = None,
) -> None:
    """Show sprints, audit log and GPUs in a browser; start and stop sprints."""
    # The server is loaded only when it is needed: most commands serve nobody.
    import uvicorn

    from executor.gpus.lending import Gpus
    from executor.gpus.survey import survey
    from orchestrator.local_agents.serving import listen
    from orchestrator.service_controls import ServiceControls
    from orchestrator.serving import serving
    from policies.state import audit_path
    from results.dashboard.app import create_app
    from results.dashboard.guard import LOOPBACK_HOSTS, Access
    from results.store import Store

    for name in allow_host or []:
        if not re.fullmatch(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+", name):
            raise UsageProblem(f"--allow-host {name!r}: a host's name or address, without a port")
    store = Store(results)
    store.runs()  # a folder that cannot be used is said now
    try:
        listener = listen(host, port)
    except UsageProblem as problem:
        note(f"labsandbox: {problem}")
        raise typer.Exit(INFRASTRUCTURE) from None
    with listener:
        address, port = listener.getsockname()[:2]
        local = address.startswith("127.") or address == "::1"
        token = None if local else secrets.token_urlsafe(32)
        named = [host, address, *(allow_host or []), *([] if local else [socket.gethostname()])]
        hosts = LOOPBACK_HOSTS | {name.lower() for name in named if name not in ("0.0.0.0", "::")}
        devices = Gpus()
        look = partial(survey, devices)
        app = create_app(
            store,
            ServiceControls(results, agents, look),
            audit=audit_path(),
            gpus=look,
            access=Access(frozenset(hosts), token),
        )
        shown = socket.gethostname() if address in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        console().print(f"http://{shown}:{port}/{f'?token={token}' if token else ''}", soft_wrap=True)
        if token:
            note("whoever has this address can start and stop sprints; it is sent unencrypted: prefer an SSH tunnel")
        note("Ctrl-C ends the dashboard; sprints that run go on")
        # No proxy's headers are believed: who connects is who is asked for.
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, server_header=False,
            proxy_headers=False,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt), serving():
            uvicorn.Server(config).run([listener])
        note("the dashboard has ended; sprints that run go on")
