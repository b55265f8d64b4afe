"""The Lumenbridge client: JSON over HTTP, with deadlines, bounded answers and bounded retries.

A call ends by its deadline whatever the other side does: a connection that stalls or drips is cut. Connection errors,
429 and 5xx are tried again with jittered exponential backoff (Retry-After is honoured); other 4xx never are.
"""

import ipaddress
import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter
from urllib3.exceptions import HTTPError

from orchestrator.agents.answers import Agent, AgentList, Answer, Code, OneAgent, Reply, Routed, clean_line, parse
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable

CONNECT_TIMEOUT = 5.0
CALL_SECONDS = 120.0
"""How long one call may take in all, when the caller sets no deadline."""
MAX_ANSWER = 8 << 20
ATTEMPTS = 3
_MAX_RETRY_AFTER = 60.0

_Model = TypeVar("_Model", bound=Answer)
_T = TypeVar("_T")


class _TryAgain(Exception):
    """An attempt that may succeed when repeated."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class _Attempt:
    method: str
    path: str
    body: dict[str, Any] | None
    deadline: float


class LumenbridgeClient:
    """One user's view of a service. Safe to use from several threads: every call has its own connection."""

    def __init__(self, base_url: str, user_id: str, backoff: float = 0.5) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise AgentRefused(f"LUMENBRIDGE_BASE_URL is no http(s) address: {clean_line(base_url, 100)}")
        self.base_url = base_url.rstrip("/")
        self.user_id = user_id
        self._backoff = backoff
        self._on_loopback = _is_loopback(parts.hostname)

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

    def invoke(self, name: str, user_prompt: str, deadline: float | None = None, **context: Any) -> str:
        """What an agent of this user says to `user_prompt`."""
        body = {"userId": self.user_id, "agentName": name, "context": {"userPrompt": user_prompt, **context}}
        return self._call("POST", "/api/agents/invoke-user-agent", body, Reply, name, deadline).response

    def code(self, prompt: str, deadline: float | None = None, language: str = "python") -> Code:
        """Code for `prompt`, with what the service says about it."""
        body = {"prompt": prompt, "context": {"language": language, "includeTests": False}}
        return self._call("POST", "/api/agents/code", body, Code, "code agent", deadline)

    def route(self, user_prompt: str, deadline: float | None = None) -> Routed:
        """Lets the service choose one of its own agents and gives that one's answer."""
        return self._call("POST", "/api/router", {"userPrompt": user_prompt}, Routed, "router", deadline)

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
        end = time.monotonic() + CALL_SECONDS if deadline is None else deadline
        attempt = _Attempt(method, path, body, end)
        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=lambda state: stop_after_attempt(ATTEMPTS)(state) or time.monotonic() + self._pause(state) >= end,
            wait=self._pause,
            reraise=True,
        )
        try:
            payload = retrying(self._once, attempt)
        except (_TryAgain, AgentsUnavailable) as error:
            raise AgentsUnavailable(f"{what}: {error}") from None
        except AgentRefused as error:
            raise AgentRefused(f"{what}: {error}", str(error)) from None
        return parse(payload, model, what)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgain) and error.after is not None:
            return error.after
        return wait_exponential_jitter(multiplier=self._backoff, max=20, jitter=self._backoff)(state)

    def _once(self, attempt: _Attempt) -> object:
        left = attempt.deadline - time.monotonic()
        if left <= 0:
            raise _TryAgain("no time was left to ask")
        try:
            response, raw = _by_deadline(lambda: self._exchange(attempt, left), left)
        except requests.exceptions.Timeout:
            raise _TryAgain("no answer in time") from None
        except (requests.exceptions.RequestException, HTTPError) as error:
            raise _TryAgain(f"cannot reach {self.base_url} ({type(error).__name__})") from None
        return _judge(response, raw)

    def _exchange(self, attempt: _Attempt, left: float) -> tuple[requests.Response, bytes]:
        with requests.Session() as session:
            # A proxy cannot reach this machine's own services, and nobody's password is for them.
            session.trust_env = not self._on_loopback
            with session.request(
                attempt.method,
                self.base_url + attempt.path,
                json=attempt.body,
                timeout=(min(CONNECT_TIMEOUT, left), left),
                allow_redirects=False,  # an answer from another host is no answer of this service
                stream=True,
            ) as response:
                return response, _read(response, attempt.deadline)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _by_deadline(work: Callable[[], _T], seconds: float) -> _T:
    """The result of `work`, or requests' Timeout after `seconds`.

    Socket timeouts hold for one read each, so a server that drips bytes could hold a call for ever. The thread that is
    given up on ends with its connection.
    """
    outcome: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, name="agent-call", daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise requests.exceptions.Timeout from None
    if error is not None:
        raise error
    return cast(_T, result)


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, within its limits of size and time."""
    parts: list[bytes] = []
    size = 0
    # Small reads, so that a connection which drips is noticed: each returns with what has come.
    while part := response.raw.read1(65536, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise AgentsUnavailable(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
        if time.monotonic() > deadline:
            raise _TryAgain("the answer did not come to its end in time")
    return b"".join(parts)


def _judge(response: requests.Response, raw: bytes) -> object:
    """The JSON of a good answer. Raises _TryAgain, AgentRefused or AgentsUnavailable."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise _TryAgain(f"the service answered {status}{_reason(raw)}", _retry_after(response))
    if 300 <= status < 400:
        raise AgentsUnavailable(f"the service answered {status}, a redirect, which is not followed")
    if status >= 400:
        said = _reason(raw).lstrip(": ") or f"the service answered {status}"
        raise AgentRefused(said)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        kind = clean_line(response.headers.get("content-type", "no content type"), 60)
        raise AgentsUnavailable(f"the answer is not JSON ({kind}, {len(raw)} bytes)") from None


def _reason(raw: bytes) -> str:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    said = data.get("error") if isinstance(data, dict) else None
    return f": {clean_line(said)}" if said else ""


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return min(_MAX_RETRY_AFTER, float(text)) if text.isdigit() else None
