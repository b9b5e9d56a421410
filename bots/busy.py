"""Turning callers away while every line is taken, before anything is built for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_RETRY_SECONDS = 10
_OFFER = re.compile(r"(/sessions/[^/]+)?/api/offer")
# Requests by which a call starts, beside WebRTC offers.
_STARTS = {
    ("POST", "/start"),
    ("POST", "/daily-dialin-webhook"),
    ("GET", "/daily"),
}
_TWILIO_WEBHOOK = ("POST", "/")
_TWILIO_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Reject reason="busy"/></Response>\n'
)
_NO_CALL = "the call could not be set up; the bot's log says why"
_BUSY = "every line is taken; try again in a moment"


class Door:
    """ASGI middleware that answers new callers while there is no room for them.

    Browsers and Daily's webhook get 503 with Retry-After; Twilio gets a busy tone.

    Args:
        app: The runner's app.
        full: Whether there is room for nobody.
    """

    def __init__(self, app: ASGIApp, full: Callable[[], bool]):
        self._app = app
        self._full = full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = (scope["method"], scope["path"])
        if not self._full():
            await self._let_in(request, scope, receive, send)
            return
        if request == _TWILIO_WEBHOOK:
            logger.info("turned a telephone caller away: {}", _BUSY)
            await _answer(send, 200, "application/xml", _TWILIO_BUSY)
            return
        if scope["method"] == "POST" and _OFFER.fullmatch(scope["path"]):
            body, receive = await _read(receive)
            if _goes_on(body):
                await self._app(scope, receive, send)
                return
        elif request not in _STARTS:
            await self._app(scope, receive, send)
            return
        logger.info("turned a caller away: {}", _BUSY)
        await _answer(send, 503, "application/json", json.dumps({"detail": _BUSY}).encode())

    async def _let_in(
        self, request: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            # Daily gave no room; the caller waits for an answer, and the log needs no traceback.
            if request not in _STARTS:
                raise
            logger.error("a call could not start: {}", one_line(error))
            await _answer(send, 502, "application/json", json.dumps({"detail": _NO_CALL}).encode())


def one_line(error: Exception) -> str:
    """What an error says, for a log."""
    return " ".join(str(error).split()) or type(error).__name__


def _goes_on(body: bytes) -> bool:
    """Whether an offer renews a connection that there is already."""
    try:
        return bool(json.loads(body).get("pc_id"))
    except (ValueError, AttributeError):
        return False


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The request's body, and a ``receive`` that gives it again."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again


async def _answer(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(_RETRY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
