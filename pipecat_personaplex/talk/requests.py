"""ASGI middleware of the page: headers and origins."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.asgi.responses import refuse

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Pipecat's own page loads a script from its maker's server.
_FOREIGN_PAGES = ("/client",)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'; media-src 'self' blob:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class SecurityHeaders:
    """Lets the page load and connect to nothing but this server.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to a response."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        foreign = scope["type"] != "http" or scope["path"].startswith(_FOREIGN_PAGES)
        await self._app(scope, receive, send if foreign else with_headers)


class SameOrigin:
    """Refuses requests of other web pages, and names that are not this machine's.

    A page on the internet could otherwise start calls and add voices through the browser of
    somebody who runs the bot: directly, or by a name that it points to 127.0.0.1.

    Args:
        app: The application.
        hosts: Names of this machine, in addition to those of the loopback interface.
        origins: Origins of the page behind a proxy that replaces the ``Host`` header, as browsers
            send them.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], origins: frozenset[str] = frozenset()):
        self._app = app
        self._hosts = frozenset(name.lower() for name in hosts) | _LOOPBACK
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        checked = scope["type"] in ("http", "websocket")
        if checked and (reason := self._refusal(Headers(scope=scope))):
            await refuse(scope["type"], send, 403, reason)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host = headers.get("host", "").lower()
        if _host_of(f"//{host}") not in self._hosts:
            return f"this page is not served as {host[:80]!r}; open the address that was printed"
        origin = headers.get("origin")
        if origin is None or origin in self._origins or origin.partition("://")[2] == host:
            return ""
        return "requests of other web pages are refused"


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as a bracket without its counterpart
        return None
