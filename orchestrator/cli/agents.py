"""`labsandbox agents`: the team, wherever it answers from; its keys; and a server for others."""

import re
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.agents.choice import EngineName
from orchestrator.agents.connect import (
    connect,
    local_agents_path,
    open_engine,
    pinned_keys,
    server_key,
    signing_key,
)
from orchestrator.agents.keys import PATH, SigningKey, new_mnemonic
from orchestrator.agents.team import setup_team
from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, harmless, note, one_line, print_json
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.settings import Settings
from policies.state import state_dir, write_secret

app = typer.Typer(no_args_is_help=True, help="The team of agents, its keys, and a server of your own.")


@app.command("setup")
def setup(agents: options.Agents = "auto", as_json: options.Json = False) -> None:
    """Register the team where it is missing or out of date."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        done = setup_team(connected.client)
    if as_json:
        print_json(done)
    else:
        for name, what in done.items():
            console().print(f"{name}: {'taken by an agent of somebody else' if what == 'taken' else what}")
    raise typer.Exit(INFRASTRUCTURE if "taken" in done.values() else 0)


@app.command("list")
def list_agents(agents: options.Agents = "auto", as_json: options.Json = False) -> None:
    """The agents that are registered for you."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        found = connected.client.my_agents()
    if as_json:
        print_json([{"name": agent.name, "description": agent.description} for agent in found])
        return
    table = Table("agent", "description")
    for agent in found:
        table.add_row(one_line(agent.name), one_line(agent.description))
    console().print(table)


Name = Annotated[str, typer.Argument(metavar="NAME", help="An agent's name, as `agents list` shows it.")]


@app.command("show")
def show(name: Name, agents: options.Agents = "auto", as_json: options.Json = False) -> None:
    """One agent, with its prompt."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        agent = connected.client.my_agent(name)
    if as_json:
        print_json(agent.model_dump())
        return
    console().print(f"{one_line(agent.name)}: {one_line(agent.description)}\n", soft_wrap=True)
    console().print(harmless(agent.prompt if agent.prompt is not None else "(the service does not show its prompt)"))


@app.command("remove")
def remove(name: Name, agents: options.Agents = "auto") -> None:
    """Remove one of your agents; the next sprint registers the team's again."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        connected.client.delete(name)
    console().print(f"{one_line(name)}: removed")


@app.command("consult")
def consult(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    agents: options.Agents = "auto",
    as_json: options.Json = False,
) -> None:
    """Ask the router, which chooses one of the service's own agents."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        answer = connected.client.route(check_goal(question))
    if as_json:
        print_json({"routing": answer.routing.model_dump(), "result": answer.result})
        return
    routing = answer.routing
    sure = f", {routing.confidence:.0%} sure" if routing.confidence is not None else ""
    console().print(f"{one_line(routing.selected_agent)}{sure}: {one_line(routing.reasoning)}", soft_wrap=True)
    result = answer.result
    text = result.get("code") or result.get("response") or result if isinstance(result, dict) else result
    console().print(harmless(str(text)), soft_wrap=True)


@app.command("stats")
def stats(
    public_key: Annotated[str | None, typer.Argument(help="Hex; default: of your own key.", show_default=False)] = None,
    agents: options.Agents = "auto",
    as_json: options.Json = False,
) -> None:
    """The account of a signing key at the service."""
    settings = Settings.read(note)
    if public_key is None:
        key = signing_key(settings)
        if key is None:
            raise UsageProblem("name a public key, or set LUMENBRIDGE_PRIVATE_KEY or LUMENBRIDGE_MNEMONIC")
        public_key = key.public.hex()
    with connect(settings, agents, state_dir()) as connected:
        note(connected.why)
        account = connected.client.stats(public_key).stats
    if as_json:
        print_json(account.model_dump())
        return
    shown = {name.replace("_", " "): value for name, value in account.model_dump().items() if value is not None}
    for name, value in shown.items():
        console().print(f"{name}: {one_line(str(value))}")


@app.command("keygen")
def keygen(
    out: Annotated[Path | None, typer.Option("--out", help="A new file for the words; mode 0600.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a signing key. Its 24 words are shown once, or kept in a file that only you can read."""
    words = new_mnemonic()
    key = SigningKey.from_mnemonic(words)
    if out is not None:
        try:
            write_secret(out, words + "\n")
        except FileExistsError:
            raise UsageProblem(f"{out} exists already, and is left as it is") from None
        except OSError as error:
            raise UsageProblem(f"cannot write {out}: {error.strerror}") from None
    public = {"public_key": key.public.hex(), "address": key.address, "path": PATH}
    if as_json:
        print_json({**public, "file": str(out)} if out else {**public, "mnemonic": words})
        return
    for name, value in public.items():
        console().print(f"{name.replace('_', ' ')}: {value}", soft_wrap=True)
    if out is not None:
        console().print(f"words: in {out}", soft_wrap=True)
    else:
        console().print(f"words: {words}", soft_wrap=True)
        note("this is shown once: whoever has the words has the key")
    note("to sign requests, set LUMENBRIDGE_MNEMONIC to the words")


@app.command("keys")
def keys(
    forget: Annotated[str | None, typer.Option("--forget", help="Pin the next key of this agent anew.")] = None,
    as_json: options.Json = False,
) -> None:
    """The keys that signed answers before; one that changes is reported."""
    pins = pinned_keys(state_dir())
    if forget is not None:
        if not pins.forget(forget):
            raise UsageProblem(f"no key of {forget!r} is pinned")
        console().print(f"{one_line(forget)}: forgotten")
        return
    found = pins.all()
    if as_json:
        print_json([dict(zip(("service", "agent", "public_key"), pin, strict=True)) for pin in found])
        return
    table = Table("service", "agent", "public key")
    for pin in found:
        table.add_row(*(one_line(cell) for cell in pin))
    console().print(table)


@app.command("serve")
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any free one.", min=0, max=65535)] = 8765,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="Who thinks: canned studies, or a model.")
    ] = "playbook",
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name in requests' Host header.")
    ] = None,
) -> None:
    """Answer Lumenbridge's protocol, for this and other programs."""
    # The server is loaded only when it is needed: most commands serve nobody.
    from orchestrator.local_agents.server import LOOPBACK_HOSTS
    from orchestrator.local_agents.serving import listen, serve_until_stopped
    from orchestrator.local_agents.store import AgentStore

    for name in allow_host or []:
        if not re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", name):
            raise UsageProblem(f"--allow-host {name!r}: a host's name or address, without a port")
    state = state_dir()
    chosen = open_engine(engine, Settings.read(note), state)
    key = server_key(state)
    named = f"[{host}]" if ":" in host else host
    hosts = tuple(
        dict.fromkeys([*LOOPBACK_HOSTS, *([] if host in ("0.0.0.0", "::") else [named]), *(allow_host or [])])
    )
    with listen(host, port) as listener:
        store = AgentStore(local_agents_path(state))
        if not _is_loopback(listener):
            note(f"anybody who reaches {host} can use these agents: the protocol has no passwords")
        console().print(f"http://{named}:{listener.getsockname()[1]}", soft_wrap=True)
        note(f"agents ({engine}), answers signed by {key.address}; Ctrl-C ends it")
        try:
            serve_until_stopped(listener, chosen, store, hosts, key)
        except KeyboardInterrupt:
            pass
        finally:
            store.close()


def _is_loopback(listener: socket.socket) -> bool:
    address = str(listener.getsockname()[0])
    return address.startswith("127.") or address == "::1"
