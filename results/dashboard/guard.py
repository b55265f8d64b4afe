"""Who is answered, and what every answer says to the browser.

Requests for another host name are refused (a page elsewhere cannot reach us by a name of its own), as are those that a
page of another site makes. On loopback only connections of this user's own processes are answered; elsewhere whoever
shows the token.
"""

import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from results.dashboard.peer import is_ours

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
# Static files of ours and nothing else: no inline script or style, no eval, and no text that becomes markup.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# For what comes from an experiment: an origin of its own, no scripts, no forms, nothing fetched.
SANDBOX_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox; frame-ancestors 'none'"
)
_SAFE = ("GET", "HEAD")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with that, forms of our own pages would come with the Origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may come in."""

    hosts: frozenset[str] = LOOPBACK_HOSTS
    """Names by which requests may call this server, lower case, without port."""
    token: str | None = None
    """Who shows it is answered; None: only this user's own processes on this machine."""
    form_key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Every form that changes something carries it: only who could read a page of ours knows it."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "Content-Security-Policy": PAGE_POLICY}.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        name = _host_name(headers.get("host", ""))
        if len(headers.getlist("host")) != 1 or name not in self._access.hosts:
            return _refused("this server does not answer to that name")
        if scope["method"] not in _SAFE and scope["method"] != "POST":
            return PlainTextResponse("method not allowed\n", 405, {"Allow": "GET, HEAD, POST"})
        if problem := _foreign(scope["method"], headers):
            return _refused(problem)
        if self._access.token is not None:
            return self._without_token(scope, headers, self._access.token)
        if not _own_process(scope):
            return _refused("this dashboard is another user's")
        return None

    def _without_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        cookie = f"labsandbox_{(scope.get('server') or ('', 0))[1]}"  # cookies do not tell ports apart
        if _same(_cookie(headers, cookie), token):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = next((value for key, value in query if key == "token"), "")
        if scope["method"] not in _SAFE or not _same(shown, token):
            return PlainTextResponse("open the address that labsandbox ui printed: it holds the token\n", 401)
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        # `//host/…` would lead elsewhere: the address of another server.
        response = RedirectResponse(f"/{scope['path'].lstrip('/')}{'?' if rest else ''}{rest}", 303)
        response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
        return response


def _foreign(method: str, headers: Headers) -> str | None:
    """Why a request is not one of our own pages', or of a person at the browser; None if it is."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        return "requests of other sites' pages are not answered"
    if method not in _SAFE:
        if site is None and origin is None:
            return "a browser says where a form was sent from; this request does not"
        return None if site in (None, "same-origin") else "forms of other sites' pages are not answered"
    if site in (None, "same-origin", "none"):
        return None
    # A link elsewhere may lead here; nothing may be loaded or framed from there.
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return None if link else "requests of other sites' pages are not answered"


def _host_name(host: str) -> str:
    """The name in a Host header, lower case, without port and brackets; "" where it makes no sense."""
    try:
        found = urlsplit(f"//{host}")
        return (found.hostname or "") if found.netloc == host and found.port != 0 and "@" not in host else ""
    except ValueError:
        return ""


def _own_process(scope: Scope) -> bool:
    client, server = scope.get("client"), scope.get("server")
    try:
        return bool(client and server and server[1] and is_ours(tuple(client), tuple(server)))
    except ValueError:
        return False


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 403)
