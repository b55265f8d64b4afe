"""An agent server that speaks Lumenbridge's protocol: the same paths, envelopes, errors and signatures.

There are no passwords in the protocol: a user is whoever names the id. Requests that are signed are held to it, and
counted for their key.
"""

import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrator.agents.keys import SigningKey
from orchestrator.agents.signatures import sign
from orchestrator.local_agents.challenges import Challenges, NotSigned
from orchestrator.local_agents.engine import Answered, Engine, EngineUnavailable
from orchestrator.local_agents.store import AgentExists, AgentStore, AgentUnknown, StoredAgent

MAX_BODY = 1 << 20
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_SYSTEM_AGENTS = frozenset({"search", "terminal", "code", "schema", "router"})
_log = logging.getLogger(__name__)

# No slash: it would be another path's.
Short = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f]+$")]
Prompt = Annotated[str, Field(min_length=1, max_length=100_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Register(_Body):
    userId: Short
    name: Short
    prompt: Prompt
    description: Annotated[str, Field(max_length=10_000)] = ""
    metadata: JsonValue = None


class _Changes(_Body):
    description: Annotated[str, Field(max_length=10_000)] | None = None
    prompt: Prompt | None = None
    metadata: JsonValue = None


class _Update(_Body):
    userId: Short
    agentName: Short
    updates: _Changes


class _Named(_Body):
    userId: Short
    agentName: Short


class _Sprint(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    sprintId: Annotated[str, Field(max_length=200)] | None = None


class _Context(_Sprint):
    userPrompt: Prompt


class _Invoke(_Named):
    context: _Context


class _Code(_Body):
    prompt: Prompt
    context: _Sprint = _Sprint()


class _Route(_Body):
    userPrompt: Prompt


class _Refusal(Exception):
    def __init__(self, status: int, message: str, agent: str | None = None, after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.agent, self.after = status, agent, after


_Model = TypeVar("_Model", bound=_Body)


def create_app(
    engine: Engine, store: AgentStore, hosts: tuple[str, ...] = LOOPBACK_HOSTS, key: SigningKey | None = None
) -> Starlette:
    """The application. Requests for other hosts are refused: a page in a browser cannot reach it by another name.

    key: signs the agents' answers.
    """
    service = _Service(engine, store, key)
    challenges = Challenges()

    def route(path: str, method: str, work: _Work) -> Route:
        return Route(path, _answering(work, challenges, store), methods=[method])

    routes = [
        route("/api/agents/register", "POST", service.register),
        route("/api/agents/update", "PUT", service.update),
        route("/api/agents/delete", "DELETE", service.delete),
        route("/api/agents/my-agents/{user}", "GET", service.list),
        route("/api/agents/my-agents/{user}/{name}", "GET", service.show),
        route("/api/agents/invoke-user-agent", "POST", service.invoke),
        route("/api/agents/code", "POST", service.code),
        route("/api/router", "POST", service.route),
        route("/api/auth/challenge", "GET", lambda body, path: _envelope(None, challenges.new())),
        route("/api/users/stats/{key}", "GET", service.stats),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


_Work = Callable[[bytes, dict[str, str]], dict[str, Any]]


class _Service:
    """What each endpoint does: a body (or path) in, the envelope out."""

    def __init__(self, engine: Engine, store: AgentStore, key: SigningKey | None) -> None:
        self._engine, self._store, self._key = engine, store, key

    def register(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Register, body)
        if asked.name.strip().casefold() in _SYSTEM_AGENTS:
            raise _Refusal(400, f"{asked.name!r} is a system agent's name", asked.name)
        try:
            agent = self._store.add(asked.userId, asked.name, asked.prompt, asked.description, asked.metadata)
        except AgentExists as error:
            raise _Refusal(400, str(error), asked.name) from None
        return _envelope(agent.name, {"message": "registered", "agent": agent.model_dump()})

    def update(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Update, body)
        self._find(asked.userId, asked.agentName, 404)
        changes = asked.updates.model_dump(exclude_unset=True)
        if any(changes.get(name, "") is None for name in ("prompt", "description")):
            raise _Refusal(400, "updates: a prompt or description cannot be null", asked.agentName)
        agent = self._store.update(asked.userId, asked.agentName, changes)
        return _envelope(agent.name, {"message": "updated", "agent": agent.model_dump()})

    def delete(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Named, body)
        self._find(asked.userId, asked.agentName, 404)
        self._store.remove(asked.userId, asked.agentName)
        return _envelope(asked.agentName, {"message": "deleted"})

    def list(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        shown = {"name", "description", "metadata", "createdAt", "updatedAt"}
        agents = [agent.model_dump(include=shown) for agent in self._store.of_user(path["user"])]
        return _envelope(None, {"userId": path["user"], "count": len(agents), "agents": agents})

    def show(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        agent = self._find(path["user"], path["name"], 404)
        return _envelope(agent.name, {"agent": agent.model_dump()})

    def invoke(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Invoke, body)
        agent = self._find(asked.userId, asked.agentName, 400)
        account = _account(asked.context)
        began = time.monotonic()
        said = _engine(
            lambda: self._engine.respond(agent.name, agent.prompt, asked.context.userPrompt, account), agent.name
        )
        result = {"agentName": agent.name, "userId": agent.userId, "response": said.value, "timestamp": _now()}
        return self._spoken(agent.name, result, said, began)

    def code(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Code, body)
        account = _account(asked.context)
        began = time.monotonic()
        said = _engine(lambda: self._engine.code(asked.prompt, account), "code")
        return self._spoken("code", said.value.model_dump(), said, began)

    def route(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Route, body)
        account = _account(_Sprint())
        began = time.monotonic()
        chosen = _engine(lambda: self._engine.route(asked.userPrompt, account), "router")
        choice = chosen.value
        routing = {"selectedAgent": choice.agent, "reasoning": choice.reasoning, "confidence": choice.confidence}
        answer: Answered[Any]
        if choice.agent == "code":
            answer = _engine(lambda: self._engine.code(asked.userPrompt, account), choice.agent)
            inner = answer.value.model_dump()
        else:
            prompt = f"You are the {choice.agent} agent. You can run nothing and look nothing up: say what you know."
            answer = _engine(
                lambda: self._engine.respond(choice.agent, prompt, asked.userPrompt, account), choice.agent
            )
            inner = {"response": answer.value}
        usage = answer.usage + chosen.usage if answer.usage and chosen.usage else answer.usage
        said = Answered(inner, answer.model, usage)
        envelope = self._spoken("router", {"routing": routing, "result": inner}, said, began)
        return {**envelope, "result": {"data": envelope["result"]}}

    def stats(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        count = self._store.requests_of(path["key"])
        if count is None:
            raise _Refusal(404, "no request signed with that key has come")
        stats = {"tier": "local", "requestLimit": None, "requestCount": count, "requestsRemaining": None}
        return _envelope(None, {"stats": stats})

    def _spoken(self, agent: str, result: dict[str, Any], said: Answered[Any], began: float) -> dict[str, Any]:
        """The envelope of an agent's answer: who made it in what time, and whose signature it bears."""
        llm: dict[str, Any] = {"provider": "labsandbox", "model": said.model or self._engine.name}
        llm["elapsed"] = round(1000 * (time.monotonic() - began))
        result = _encodable(result)
        if (usage := said.usage) is not None:
            total = usage.prompt + usage.completion
            llm["usage"] = {"promptTokens": usage.prompt, "completionTokens": usage.completion, "totalTokens": total}
        signature = {"_signature": sign(self._key, result, agent)} if self._key else {}
        return _envelope(agent, {**result, **signature, "_llm": llm})

    def _find(self, user: str, name: str, status: int) -> StoredAgent:
        try:
            return self._store.get(user, name)
        except AgentUnknown as error:
            raise _Refusal(status, str(error), name) from None


def _account(context: _Sprint) -> str:
    """Who pays for a model: the sprint; and all that belongs to none, day by day."""
    return context.sprintId or f"day {datetime.now(UTC):%Y-%m-%d}"


_T = TypeVar("_T")


def _engine(work: Callable[[], _T], agent: str) -> _T:
    try:
        return work()
    except ValueError as error:
        raise _Refusal(400, str(error), agent) from None
    except EngineUnavailable as error:
        raise _Refusal(500, str(error), agent, error.after) from None
    except Exception:
        _log.exception("the engine failed")
        raise _Refusal(500, "the agent failed to answer", agent) from None


def _read(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise _Refusal(400, f"{where}: {first['msg']}") from None


def _answering(work: _Work, challenges: Challenges, store: AgentStore) -> Callable[[Request], Any]:
    """An endpoint that runs `work` in a thread: engines may take long."""

    async def endpoint(request: Request) -> JSONResponse:
        if "origin" in request.headers:  # only browsers send it, and no page has any business here
            return _error(_Refusal(403, "requests from web pages are not answered"))
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _error(_Refusal(413, f"the body is larger than {MAX_BODY} bytes"))
        try:
            if key := challenges.signer(request.headers):
                store.count_request(key)
            return JSONResponse(await run_in_threadpool(work, body, dict(request.path_params)))
        except NotSigned as error:
            return _error(_Refusal(401, str(error)))
        except _Refusal as refusal:
            return _error(refusal)
        except Exception:
            _log.exception("a request failed")
            return _error(_Refusal(500, "the server failed to answer"))

    return endpoint


def _encodable(value: Any) -> Any:
    """The same without halves of characters, which models produce and no wire takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _encodable(inner) for key, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, list) else value


def _error(refusal: _Refusal) -> JSONResponse:
    content = {"error": str(refusal), "agent": refusal.agent, "timestamp": _now()}
    headers = {"Retry-After": str(math.ceil(refusal.after))} if refusal.after is not None else None
    return JSONResponse(content, status_code=refusal.status, headers=headers)


def _envelope(agent: str | None, result: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "agent": agent, "result": result, "timestamp": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
