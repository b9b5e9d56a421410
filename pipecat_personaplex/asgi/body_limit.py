"""Bounds the body of HTTP requests before the application parses it."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.asgi.responses import refuse

MAX_BODY_BYTES = 64 << 10
_LARGE_AT_ONCE = 4


class BodyLimit:
    """ASGI middleware that refuses requests with a large body with 413.

    It reads the whole body before the application runs, so neither a false ``Content-Length`` nor
    a chunked body can exceed the limit.

    Args:
        app: The application.
        max_bytes: Size of the largest body that is accepted.
        by_path: The same for paths with a larger limit of their own. Four such requests are served
            at once, all paths together; further ones get 503.

    Example::

        app.add_middleware(BodyLimit, max_bytes=64 << 10, by_path={"/voices": 16 << 20})
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        by_path: Mapping[str, int] | None = None,
    ):
        self._app = app
        self._max_bytes = max_bytes
        self._by_path = by_path or {}
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope.get("path", ""))
        if limit is None:
            await self._limited(self._max_bytes, scope, receive, send)
            return
        if self._large >= _LARGE_AT_ONCE:
            detail = "too many large requests at once; try again in a moment"
            await refuse("http", send, 503, detail, {"connection": "close", "retry-after": "5"})
            return
        self._large += 1
        try:
            await self._limited(limit, scope, receive, send)
        finally:
            self._large -= 1

    async def _limited(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        body = None if _declares_more(scope, limit) else await read_body(receive, limit)
        if body is None:
            size = f"{limit} bytes" if limit % 1024 else f"{limit >> 10} KiB"
            detail = f"the body may have {size} at most"
            # The rest of the body is not read, so the connection cannot be used again.
            await refuse("http", send, 413, detail, headers={"connection": "close"})
            return
        await self._app(scope, replay(body, receive), send)


def _declares_more(scope: Scope, limit: int) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return not value.isdigit() or int(value[:20]) > limit
    return False


async def read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Read the body of a request; None if it is larger, or if the client has disconnected."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        more = message.get("more_body", False)
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that delivers a body that was read, and then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return waiting.pop() if waiting else await receive()

    return replaying
