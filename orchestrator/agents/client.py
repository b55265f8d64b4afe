"""The Lumenbridge client: its endpoints, requests signed and answers graded, every question put on record."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Self, TypeVar
from urllib.parse import quote

from orchestrator.agents.answers import (
    Agent,
    AgentList,
    Answer,
    Challenge,
    Code,
    OneAgent,
    Reply,
    Routed,
    Stats,
    llm_of,
    parse,
    signed_result,
)
from orchestrator.agents.errors import AgentError, AgentRefused, AgentsUnavailable
from orchestrator.agents.keys import SigningKey
from orchestrator.agents.signatures import PinnedKeys, Signed, grade
from orchestrator.agents.transport import Transport

Record = Callable[[dict[str, Any]], None]
"""Takes one call's record: plain JSON data."""
_Model = TypeVar("_Model", bound=Answer)


class LumenbridgeClient:
    """One user's view of a service. Safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        user_id: str,
        backoff: float = 0.5,
        *,
        key: SigningKey | None = None,
        pins: PinnedKeys | None = None,
        require_signed: bool = False,
        name: str | None = None,
    ) -> None:
        """key: signs every request. require_signed: an agent's answer without a valid signature is refused. name: of the service
        on a sprint's record; by default its address."""
        self._transport = Transport(base_url, "LUMENBRIDGE_BASE_URL", backoff)
        self.base_url = self._transport.base_url
        self.name = name or self.base_url
        self.user_id = user_id
        self._key = key
        self._pins = pins
        self._require_signed = require_signed
        self._sprint: dict[str, str] = {}
        self._record: Record = lambda record: None

    def for_sprint(self, sprint: str, record: Record) -> Self:
        """The same, but agents are told the sprint's id, and `record` gets every question with its answer."""
        other = copy.copy(self)
        other._sprint, other._record = {"sprintId": sprint}, record
        return other

    # ---- the endpoints ----

    def register(self, name: str, prompt: str, description: str = "", deadline: float | None = None) -> Agent:
        """Registers an agent. Raises AgentRefused where the name exists."""
        body = {"userId": self.user_id, "name": name, "prompt": prompt, "description": description}
        return self._call("POST", "/api/agents/register", body, OneAgent, f"registering {name}", deadline).agent

    def update(self, name: str, prompt: str, description: str = "", deadline: float | None = None) -> Agent:
        """Changes a registered agent's prompt and description."""
        updates = {"prompt": prompt, "description": description}
        body = {"userId": self.user_id, "agentName": name, "updates": updates}
        return self._call("PUT", "/api/agents/update", body, OneAgent, f"updating {name}", deadline).agent

    def my_agents(self, deadline: float | None = None) -> list[Agent]:
        """This user's agents; without their prompts."""
        path = f"/api/agents/my-agents/{quote(self.user_id, safe='')}"
        return self._call("GET", path, None, AgentList, "listing the agents", deadline).agents

    def my_agent(self, name: str, deadline: float | None = None) -> Agent:
        """One of this user's agents, with its prompt where the service gives it."""
        path = f"/api/agents/my-agents/{quote(self.user_id, safe='')}/{quote(name, safe='')}"
        return self._call("GET", path, None, OneAgent, f"reading {name}", deadline).agent

    def delete(self, name: str, deadline: float | None = None) -> None:
        """Removes one of this user's agents. Raises AgentRefused where there is none."""
        body = {"userId": self.user_id, "agentName": name}
        self._call("DELETE", "/api/agents/delete", body, Answer, f"removing {name}", deadline)

    def stats(self, public_key: str, deadline: float | None = None) -> Stats:
        """The account of a signing key. public_key: hex, compressed."""
        path = f"/api/users/stats/{quote(public_key, safe='')}"
        return self._call("GET", path, None, Stats, "reading the account", deadline)

    def invoke(self, name: str, user_prompt: str, deadline: float | None = None, **context: Any) -> str:
        """What an agent of this user says to `user_prompt`."""
        told = {"userPrompt": user_prompt, **self._sprint, **context}
        body = {"userId": self.user_id, "agentName": name, "context": told}
        return self._ask(name, user_prompt, "/api/agents/invoke-user-agent", body, Reply, deadline).response

    def code(self, prompt: str, deadline: float | None = None, language: str = "python") -> Code:
        """Code for `prompt`, with what the service says about it."""
        body = {"prompt": prompt, "context": {"language": language, "includeTests": False, **self._sprint}}
        return self._ask("code agent", prompt, "/api/agents/code", body, Code, deadline)

    def route(self, user_prompt: str, deadline: float | None = None) -> Routed:
        """Lets the service choose one of its own agents and gives that one's answer."""
        return self._ask("router", user_prompt, "/api/router", {"userPrompt": user_prompt}, Routed, deadline)

    # ---- one call ----

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        model: type[_Model],
        what: str,
        deadline: float | None,
    ) -> _Model:
        return parse(self._payload(method, path, body, what, deadline), model, what)

    def _payload(
        self, method: str, path: str, body: dict[str, Any] | None, what: str, deadline: float | None
    ) -> object:
        headers = self._signature_headers if self._key is not None else None
        try:
            return self._transport.call(method, path, body, deadline, headers)
        except AgentsUnavailable as error:
            raise AgentsUnavailable(f"{what}: {error}") from None
        except AgentRefused as error:
            raise AgentRefused(f"{what}: {error}", error.said) from None

    def _signature_headers(self, deadline: float) -> Mapping[str, str]:
        """A challenge of the service's, signed; a new one for every attempt, for they expire."""
        assert self._key is not None
        payload = self._transport.call("GET", "/api/auth/challenge", None, deadline, attempts=1)
        challenge = parse(payload, Challenge, "signing the request").challenge
        return {
            "x-signature": self._key.sign(challenge.encode()).hex(),
            "x-public-key": self._key.public.hex(),
            "x-challenge": challenge,
        }

    # ---- one question ----

    def _ask(
        self, agent: str, prompt: str, path: str, body: dict[str, Any], model: type[_Model], deadline: float | None
    ) -> _Model:
        """A call whose answer is an agent's own words: graded, and on record."""
        record: dict[str, Any] = {"time": datetime.now(UTC).isoformat(), "agent": agent, "call": path, "prompt": prompt}
        began = time.monotonic()
        try:
            payload = self._payload("POST", path, body, agent, deadline)
            result = signed_result(payload)
            record |= {"answer": result if result else payload, **llm_of(result)}
            self._check_signature(agent, result, record)
            # What was graded is what is read: words beside a signed object are nobody's.
            return parse({"result": result} if "_signature" in result else payload, model, agent)
        except AgentError as error:
            record["error"] = str(error)
            raise
        finally:
            self._record({**record, "latency_s": round(time.monotonic() - began, 3)})

    def _check_signature(self, agent: str, result: dict[str, Any], record: dict[str, Any]) -> None:
        signed = grade(result)
        pinned = self._pinned(agent, signed)
        record["signature"] = {**asdict(signed), "pinned_key": pinned}
        if not self._require_signed:
            return
        if signed.grade in ("unsigned", "invalid"):
            raise AgentsUnavailable(f"{agent}: a signed answer is required, and this one is {signed.grade}")
        if pinned is not None:
            raise AgentsUnavailable(f"{agent}: signed with another key than before (labsandbox agents keys shows them)")

    def _pinned(self, agent: str, signed: Signed) -> str | None:
        """The key that this agent's answers bore before, where that was another. Who signs may call itself anything."""
        if self._pins is None or not signed.public_key:
            return None
        return self._pins.check(self.base_url, agent, signed.public_key)
