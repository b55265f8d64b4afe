"""An agent server that speaks Lumenbridge's protocol: the same paths, envelopes, and errors, on loopback."""

import logging
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

from orchestrator.local_agents.engine import Engine
from orchestrator.local_agents.store import AgentExists, AgentStore, AgentUnknown, StoredAgent

MAX_BODY = 1 << 20
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_SYSTEM_AGENTS = frozenset({"search", "terminal", "code", "schema", "router"})
_log = logging.getLogger(__name__)

Short = Annotated[str, Field(min_length=1, max_length=200)]
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


class _Context(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    userPrompt: Prompt


class _Invoke(_Named):
    context: _Context


class _Code(_Body):
    prompt: Prompt


class _Route(_Body):
    userPrompt: Prompt


class _Refusal(Exception):
    def __init__(self, status: int, message: str, agent: str | None = None) -> None:
        super().__init__(message)
        self.status, self.agent = status, agent


_Model = TypeVar("_Model", bound=_Body)


def create_app(engine: Engine, store: AgentStore, hosts: tuple[str, ...] = LOOPBACK_HOSTS) -> Starlette:
    """The application. Requests for other hosts are refused: a page in a browser cannot reach it by another name."""
    service = _Service(engine, store)
    routes = [
        Route("/api/agents/register", _answering(service.register), methods=["POST"]),
        Route("/api/agents/update", _answering(service.update), methods=["PUT"]),
        Route("/api/agents/delete", _answering(service.delete), methods=["DELETE"]),
        Route("/api/agents/my-agents/{user}", _answering(service.list), methods=["GET"]),
        Route("/api/agents/my-agents/{user}/{name}", _answering(service.show), methods=["GET"]),
        Route("/api/agents/invoke-user-agent", _answering(service.invoke), methods=["POST"]),
        Route("/api/agents/code", _answering(service.code), methods=["POST"]),
        Route("/api/router", _answering(service.route), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


class _Service:
    """What each endpoint does: a body (or path) in, the envelope out."""

    def __init__(self, engine: Engine, store: AgentStore) -> None:
        self._engine, self._store = engine, store

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
        began = time.monotonic()
        response = _engine(lambda: self._engine.respond(agent.name, agent.prompt, asked.context.userPrompt), agent.name)
        result = {"agentName": agent.name, "userId": agent.userId, "response": response, "timestamp": _now()}
        return _envelope(agent.name, {**result, **self._llm(began)})

    def code(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Code, body)
        began = time.monotonic()
        answer = _engine(lambda: self._engine.code(asked.prompt), "code")
        return _envelope("code", {**answer.model_dump(), **self._llm(began)})

    def route(self, body: bytes, path: dict[str, str]) -> dict[str, Any]:
        asked = _read(_Route, body)
        agent, reasoning, confidence = _engine(lambda: self._engine.route(asked.userPrompt), "router")
        routing = {"selectedAgent": agent, "reasoning": reasoning, "confidence": confidence}
        answer = _engine(lambda: self._engine.code(asked.userPrompt), agent)
        return _envelope("router", {"data": {"routing": routing, "result": answer.model_dump()}})

    def _find(self, user: str, name: str, status: int) -> StoredAgent:
        try:
            return self._store.get(user, name)
        except AgentUnknown as error:
            raise _Refusal(status, str(error), name) from None

    def _llm(self, began: float) -> dict[str, Any]:
        elapsed = round(1000 * (time.monotonic() - began))
        return {"_llm": {"provider": "labsandbox", "model": self._engine.name, "elapsed": elapsed}}


_T = TypeVar("_T")


def _engine(work: Callable[[], _T], agent: str) -> _T:
    try:
        return work()
    except ValueError as error:
        raise _Refusal(400, str(error), agent) from None
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


def _answering(
    work: Callable[[bytes, dict[str, str]], dict[str, Any]],
) -> Callable[[Request], Any]:
    """An endpoint that runs `work` in a thread: engines may take long."""

    async def endpoint(request: Request) -> JSONResponse:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _error(_Refusal(413, f"the body is larger than {MAX_BODY} bytes"))
        try:
            return JSONResponse(await run_in_threadpool(work, body, dict(request.path_params)))
        except _Refusal as refusal:
            return _error(refusal)

    return endpoint


def _error(refusal: _Refusal) -> JSONResponse:
    content = {"error": str(refusal), "agent": refusal.agent, "timestamp": _now()}
    return JSONResponse(content, status_code=refusal.status)


def _envelope(agent: str | None, result: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "agent": agent, "result": result, "timestamp": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
