"""JSON over HTTP with a service that is not trusted: deadlines, bounded answers, bounded retries.

A call ends by its deadline whatever the other side does: a connection that stalls or drips is cut. Connection errors,
429 and 5xx are tried again with jittered exponential backoff (Retry-After is honoured); other 4xx never are.
"""

import ipaddress
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from orchestrator.agents.answers import clean_line
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.background import in_background

CONNECT_TIMEOUT = 5.0
CALL_SECONDS = 120.0
"""How long one call may take in all, when the caller sets no deadline."""
MAX_ANSWER = 8 << 20
ATTEMPTS = 3
_MAX_BACKOFF = 20.0

Headers = Callable[[float], Mapping[str, str]]
"""Further headers of one attempt, given its deadline."""


class _TryAgain(AgentsUnavailable):
    """An attempt that may succeed when repeated."""


@dataclass(frozen=True)
class _Attempt:
    method: str
    path: str
    body: dict[str, Any] | None
    deadline: float
    headers: Headers | None


class Transport:
    """Calls to one service. Safe to use from several threads: every call has its own connection."""

    def __init__(self, base_url: str, name: str, backoff: float = 0.5, attempts: int = ATTEMPTS) -> None:
        """name: the setting that the address came from. Raises AgentRefused where it is not an address."""
        host = _host_of(base_url, name)
        self.base_url = base_url.rstrip("/")
        self._backoff = backoff
        self._attempts = attempts
        self._on_loopback = _is_loopback(host)

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        deadline: float | None = None,
        headers: Headers | None = None,
        attempts: int | None = None,
    ) -> object:
        """The JSON of the answer. `deadline` is one of time.monotonic(). Raises AgentError."""
        end = time.monotonic() + CALL_SECONDS if deadline is None else deadline
        attempt, left = _Attempt(method, path, body, end, headers), attempts or self._attempts
        while True:
            try:
                return self._once(attempt)
            except _TryAgain as error:
                left -= 1
                pause = self._pause(error, (attempts or self._attempts) - left)
                if left == 0 or time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)

    def _pause(self, error: "_TryAgain", failed: int) -> float:
        """What the service asked for, or twice as long each time, and somewhat more so that many do not come at once."""
        if error.after is not None:
            return error.after
        return min(_MAX_BACKOFF, self._backoff * 2.0 ** (failed - 1)) + random.uniform(0, self._backoff)

    def _once(self, attempt: _Attempt) -> object:
        headers = attempt.headers(attempt.deadline) if attempt.headers else {}
        left = attempt.deadline - time.monotonic()
        if left <= 0:
            raise _TryAgain("no time was left to ask")
        try:
            # Socket timeouts hold for one read each, so a server that drips bytes could hold a call for ever. The thread
            # that is given up on ends with its connection.
            response, raw = in_background(self._exchange, attempt, headers, left).result(timeout=left)
        except (TimeoutError, requests.exceptions.Timeout):
            raise _TryAgain("no answer in time") from None
        except (requests.exceptions.RequestException, HTTPError, UnicodeError) as error:
            unheard = isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError)
            raise _TryAgain(f"cannot reach {self.base_url} ({type(error).__name__})", unheard=unheard) from None
        return _judge(response, raw)

    def _exchange(self, attempt: _Attempt, headers: Mapping[str, str], left: float) -> tuple[requests.Response, bytes]:
        with requests.Session() as session:
            # A proxy cannot reach this machine's own services, and nobody's password is for them.
            session.trust_env = not self._on_loopback
            with session.request(
                attempt.method,
                self.base_url + attempt.path,
                json=attempt.body,
                headers=dict(headers),
                auth=_as_it_is,
                timeout=(min(CONNECT_TIMEOUT, left), left),
                allow_redirects=False,  # an answer from another host is not this service's
                stream=True,
            ) as response:
                return response, _read(response, attempt.deadline)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No login from ~/.netrc: it would go to strangers, and take the place of the header that says who asks."""
    return request


def _host_of(base_url: str, name: str) -> str:
    try:
        parts = urlsplit(base_url)
        host = parts.hostname if parts.scheme in {"http", "https"} else None
        secret = parts.username is not None or parts.password is not None or bool(parts.query)
        _ = parts.port  # raises where it is malformed
    except ValueError:
        host, secret = None, False
    if secret:  # addresses are shown and put on record
        raise AgentRefused(f"{name} holds a user, a password or a query, which do not belong in an address")
    if not host:
        raise AgentRefused(f"{name} is not an http(s) address: {clean_line(base_url, 100)}")
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


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
        unheard = status in (429, 503)
        raise _TryAgain(f"the service answered {status}{_reason(raw)}", _retry_after(response), unheard)
    if 300 <= status < 400:
        raise AgentsUnavailable(f"the service answered {status}, a redirect, which is not followed")
    if status >= 400:
        said = _reason(raw).lstrip(": ") or f"the service answered {status}"
        raise AgentRefused(said, said)
    try:
        return _json(raw)
    except (ValueError, RecursionError):
        kind = clean_line(response.headers.get("content-type", "no content type"), 60)
        raise AgentsUnavailable(f"the answer is not JSON ({kind}, {len(raw)} bytes)") from None


def _json(raw: bytes) -> object:
    """JSON as its standard has it: Python would also take NaN and infinities, which nobody else can read back."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    def finite(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refuse(text)

    return json.loads(raw, parse_constant=refuse, parse_float=finite)


def _reason(raw: bytes) -> str:
    """What an error says of itself: its `error`, which may be an object with a `message`; or `message`, or `detail`."""
    try:
        data = _json(raw)
    except (ValueError, RecursionError):
        return ""
    said = (data.get("error") or data.get("message") or data.get("detail")) if isinstance(data, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    return f": {clean_line(said)}" if said else ""


def _retry_after(response: requests.Response) -> float | None:
    """Seconds, which the header gives as such or as a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds)
