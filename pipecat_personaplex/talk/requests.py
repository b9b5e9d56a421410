"""ASGI middleware of the page: headers, origins, and the size of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self._app = app
        self._hosts = hosts | _LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        checked = scope["type"] in ("http", "websocket")
        if checked and (reason := self._refusal(Headers(scope=scope))):
            if scope["type"] == "http":
                await _respond(send, 403, reason)
            else:
                await receive()
                await send({"type": "websocket.close"})  # before it is accepted: 403
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host = headers.get("host", "")
        if urlsplit(f"//{host}").hostname not in self._hosts:
            return f"this page is not served as {host[:80]!r}; open the address that was printed"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "requests of other web pages are refused"
        return ""


class LimitBody:
    """Bounds the size of requests, before they are read.

    Args:
        app: The application.
        limits: Largest bodies in bytes, by path.
        default: The largest body of other paths.
    """

    def __init__(self, app: ASGIApp, limits: Mapping[str, int], default: int):
        self._app = app
        self._limits = limits
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._default)
        messages: list[Message] = []
        size = 0
        # The whole body is collected here, so that the application reads none that is too large.
        while not messages or messages[-1].get("more_body"):
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            messages.append(message)
            size += len(message.get("body", b""))
            if size > limit:
                text = f"the request has more than {limit >> 10} KiB, the most that is accepted"
                await _respond(send, 413, text)
                return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


async def _respond(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
