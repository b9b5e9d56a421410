"""Bounds the size and the rate of the messages that a WebSocket client sends."""

from __future__ import annotations

import asyncio

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.asgi.token_bucket import TokenBucket

MAX_MESSAGE_BYTES = 64 << 10
MESSAGES_PER_SECOND = 100.0
MESSAGES_AT_ONCE = 500.0
"""What a telephone call sends after a stall of 10 s, at 50 messages a second."""

_POLICY_VIOLATION, _TOO_BIG = 1008, 1009


class WebSocketLimit:
    """ASGI middleware that closes a WebSocket whose client sends too much or too fast.

    It also yields to the event loop before each message: an application that reads messages that
    have arrived already would otherwise keep all other calls waiting.

    Args:
        app: The application.
        max_bytes: Size of the largest message that is accepted.
        per_second: Messages a second that a client may send in the long run.
        at_once: Messages that it may send at once.

    Example::

        app.add_middleware(WebSocketLimit, per_second=100, at_once=500)
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_MESSAGE_BYTES,
        per_second: float = MESSAGES_PER_SECOND,
        at_once: float = MESSAGES_AT_ONCE,
    ):
        self._app = app
        self._max_bytes = max_bytes
        self._per_second = per_second
        self._at_once = at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the WebSocket on, with limited messages."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        clock = asyncio.get_running_loop().time
        bucket = TokenBucket(self._per_second, self._at_once, clock())
        closed = False

        async def close(code: int, reason: str) -> Message:
            nonlocal closed
            client = scope.get("client") or ("unknown",)
            logger.warning("a WebSocket of client {} was closed: {}", client[0], reason)
            closed = True
            await send({"type": "websocket.close", "code": code, "reason": reason})
            return {"type": "websocket.disconnect", "code": code, "reason": reason}

        async def limited_receive() -> Message:
            await asyncio.sleep(0)
            message = await receive()
            if message["type"] != "websocket.receive":
                return message
            if _size(message) > self._max_bytes:
                return await close(_TOO_BIG, f"a message of more than {self._max_bytes} bytes")
            if not bucket.take(clock()):
                return await close(
                    _POLICY_VIOLATION, f"more than {self._per_second:g} messages a second"
                )
            return message

        async def limited_send(message: Message) -> None:
            if not closed:  # the application may not have noticed yet
                await send(message)

        await self._app(scope, limited_receive, limited_send)


def _size(message: Message) -> int:
    text = message.get("text")
    # The length in characters is at most the size in bytes, and at least a quarter of it.
    return len(text) if text is not None else len(message.get("bytes") or b"")
