"""Chooses who answers: the service, or a local team."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentRefused
from orchestrator.settings import Settings

AgentsChoice = Literal["auto", "local", "lumenbridge"]


@dataclass(frozen=True)
class Connected:
    """A client, and who it talks to and why."""

    client: LumenbridgeClient
    why: str


@contextmanager
def connect(settings: Settings, choice: AgentsChoice, state: Path) -> Iterator[Connected]:
    """Lumenbridge if its address is set (or asked for), otherwise a local team for as long as this lasts.

    Raises AgentRefused when Lumenbridge is asked for and no address is set.
    """
    if choice == "lumenbridge" and settings.lumenbridge_url is None:
        raise AgentRefused("--agents lumenbridge needs LUMENBRIDGE_BASE_URL, in the environment or in .env")
    if choice != "local" and settings.lumenbridge_url is not None:
        client = LumenbridgeClient(settings.lumenbridge_url, settings.user_id)
        yield Connected(client, f"agents of {client.base_url}: LUMENBRIDGE_BASE_URL is set")
        return
    # A server and an engine are loaded only when they are needed: most commands ask nobody.
    from orchestrator.local_agents.playbook.engine import PlaybookEngine
    from orchestrator.local_agents.serving import serve_locally
    from orchestrator.local_agents.store import AgentStore

    reason = "as asked" if choice == "local" else "LUMENBRIDGE_BASE_URL is not set"
    store = AgentStore(state / "local_agents.sqlite")
    try:
        with serve_locally(PlaybookEngine(), store) as address:
            yield Connected(LumenbridgeClient(address, settings.user_id), f"local agents (playbook): {reason}")
    finally:
        store.close()
