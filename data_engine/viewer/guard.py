"""Who may ask, and what a page may load.

The server listens on loopback only, which other users, other local servers and any web page that is open in a browser
can reach too. So: a random token, first in the address and then in a cookie; only host names of this machine, or a page
from elsewhere could point its own name here (DNS rebinding); nothing on behalf of another origin; nothing loaded from
elsewhere.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOSTS = {"127.0.0.1", "localhost", "::1"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware in front of everything, static files included."""

    def __init__(self, app: ASGIApp, token: str, port: int, once: str | None = None) -> None:
        """port: in the cookie's name, since the ports of a host share their cookies.

        once: a token for the first page alone, as for a browser whose command line other users can see.
        """
        self._app = app
        self._token = token
        self._once = once
        self._cookie = f"data-engine-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further: refused, or sent on to the address without the token."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(host) not in _HOSTS:
            return PlainTextResponse("This host name is not of this machine.", 421)
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = [value for name, value in asked if name == "token"]
        if shown and scope["method"] == "GET" and (self._right(shown[0]) or self._first(shown[0])):
            rest = urlencode([(name, value) for name, value in asked if name != "token"])
            path = "/" + scope["path"].lstrip("/\\")  # "//host" would lead to another one
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax", path="/")
            return answer
        if not self._right(_bearer(headers)) and not self._right(self._from_cookie(headers)):
            return PlainTextResponse(
                "Open the address that `data-engine view` printed: its token is missing or wrong.", 403
            )
        if not _own_request(scope, headers, host):
            return PlainTextResponse("Requests of other sites are refused.", 403)
        return None

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode())

    def _first(self, given: str) -> bool:
        right = self._once is not None and hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._once.encode()
        )
        self._once = None if right else self._once
        return right

    def _from_cookie(self, headers: Headers) -> str:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return cookie.value if cookie is not None else ""


def _hostname(host: str) -> str:
    """ "127.0.0.1" of "127.0.0.1:8000"; "" of what is no host. Any port: it may come through a tunnel."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value if scheme.lower() == "bearer" else ""


def _own_request(scope: Scope, headers: Headers, host: str) -> bool:
    """Whether the page itself asks, or a person opens a page. What changes something needs an origin or a bearer token,
    so that no form of another site does it."""
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
    reads = scope["method"] in ("GET", "HEAD")
    if site not in ("none", "same-origin"):  # a link of another site may lead to a page, and to nothing else
        return reads and mode == "navigate" and not scope["path"].startswith("/api/")
    origin = headers.get("origin")
    if origin is not None:
        return origin in (f"http://{host}", f"https://{host}")
    return reads or bool(_bearer(headers))
