"""Bounds the body of HTTP requests before the application parses it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.asgi.responses import refuse

MAX_BODY_BYTES = 64 << 10


class BodyLimit:
    """ASGI middleware that refuses requests with a large body with 413.

    It reads the whole body before the application runs, so neither a false ``Content-Length`` nor
    a chunked body can exceed the limit.

    Args:
        app: The application.
        max_bytes: Size of the largest body that is accepted.

    Example::

        app.add_middleware(BodyLimit, max_bytes=64 << 10)
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = None if self._declares_more(scope) else await read_body(receive, self._max_bytes)
        if body is None:
            detail = f"the body may have {self._max_bytes} bytes at most"
            # The rest of the body is not read, so the connection cannot be used again.
            await refuse("http", send, 413, detail, headers={"connection": "close"})
            return
        await self._app(scope, replay(body, receive), send)

    def _declares_more(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return not value.isdigit() or int(value[:20]) > self._max_bytes
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
