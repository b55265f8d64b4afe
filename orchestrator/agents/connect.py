"""Chooses who answers: the service, or a local team, and with which engine."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.agents.choice import AgentsChoice, EngineName
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentRefused
from orchestrator.agents.keys import SigningKey
from orchestrator.agents.signatures import PinnedKeys
from orchestrator.errors import UsageProblem
from orchestrator.settings import Settings
from policies.state import write_secret

if TYPE_CHECKING:
    from orchestrator.local_agents.engine import Engine


@dataclass(frozen=True)
class Connected:
    """A client, and who it talks to and why."""

    client: LumenbridgeClient
    why: str


@contextmanager
def connect(settings: Settings, choice: AgentsChoice, state: Path, require_signed: bool = False) -> Iterator[Connected]:
    """Lumenbridge if its address is set (or asked for), otherwise a local team for as long as this lasts.

    Raises AgentRefused when Lumenbridge is asked for and no address is set, UsageProblem for settings that are wrong.
    """
    key = signing_key(settings)
    if choice == "lumenbridge" and settings.lumenbridge_url is None:
        raise AgentRefused("--agents lumenbridge needs LUMENBRIDGE_BASE_URL, in the environment or in .env")
    if choice in ("auto", "lumenbridge") and settings.lumenbridge_url is not None:
        client = LumenbridgeClient(
            settings.lumenbridge_url,
            settings.user_id,
            key=key,
            pins=pinned_keys(state),
            require_signed=require_signed,
        )
        signed = f", requests signed by {key.address}" if key else ""
        yield Connected(client, f"agents of {client.base_url}: LUMENBRIDGE_BASE_URL is set{signed}")
        return
    # A server and an engine are loaded only when they are needed: most commands ask nobody.
    from orchestrator.local_agents.serving import serve_locally
    from orchestrator.local_agents.store import AgentStore

    name, reason = _engine_choice(settings, choice)
    store = AgentStore(local_agents_path(state))
    try:
        with serve_locally(open_engine(name, settings, state), store, server_key(state)) as address:
            who = f"{name}, {settings.llm.model}" if name == "llm" and settings.llm else name
            local = f"local agents ({who})"  # their port is a new one every time
            client = LumenbridgeClient(address, settings.user_id, key=key, require_signed=require_signed, name=local)
            yield Connected(client, f"{local}: {reason}")
    finally:
        store.close()


def open_engine(name: EngineName, settings: Settings, state: Path) -> "Engine":
    """Raises UsageProblem when there is no model to ask."""
    if name == "playbook":
        from orchestrator.local_agents.playbook.engine import PlaybookEngine

        return PlaybookEngine()
    from orchestrator.local_agents.llm.engine import LlmEngine

    if settings.llm is None:
        raise UsageProblem("the engine llm needs LABSANDBOX_LLM_BASE_URL and LABSANDBOX_LLM_MODEL")
    return LlmEngine(settings.llm, state / "llm_spending.sqlite")


def signing_key(settings: Settings) -> SigningKey | None:
    """The user's own key, if one is set. Raises UsageProblem for one that is malformed, or for two."""
    if settings.private_key and settings.mnemonic:
        raise UsageProblem("LUMENBRIDGE_PRIVATE_KEY and LUMENBRIDGE_MNEMONIC are both set: which is it?")
    if settings.private_key:
        return SigningKey.from_hex(settings.private_key.get_secret_value())
    if settings.mnemonic:
        return SigningKey.from_mnemonic(settings.mnemonic.get_secret_value())
    return None


def server_key(state: Path) -> SigningKey:
    """The key of this user's own agent server; made on first use, readable by its owner alone."""
    path = state / "local_agents.key"
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            write_secret(path, secrets.token_hex(32) + "\n")
    try:
        return SigningKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (OSError, ValueError):
        raise UsageProblem(f"{path} holds no key; remove it, and a new one is made") from None


def pinned_keys(state: Path) -> PinnedKeys:
    """The keys that were seen first of services elsewhere."""
    return PinnedKeys(state / "agent_keys.sqlite")


def local_agents_path(state: Path) -> Path:
    """Where the local server keeps agents."""
    return state / "local_agents.sqlite"


def _engine_choice(settings: Settings, choice: AgentsChoice) -> tuple[EngineName, str]:
    if choice in ("playbook", "llm"):
        return choice, "as asked"
    asked = "as asked" if choice == "local" else "LUMENBRIDGE_BASE_URL is not set"
    if settings.llm is None:
        return "playbook", asked
    return "llm", f"{asked}, and LABSANDBOX_LLM_BASE_URL is"
