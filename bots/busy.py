"""Refuses new callers while every slot is in use, before a connection is built for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bots.offer_limit import OFFER
from pipecat_personaplex.asgi.body_limit import MAX_BODY_BYTES, read_body, replay
from pipecat_personaplex.asgi.responses import respond

client_address: ContextVar[str] = ContextVar("client_address", default="")
"""Address of the client whose request is being served; empty outside a request.

Pipecat's runner starts a bot within the request that starts its call, so the bot sees it too.
"""

_RETRY_SECONDS = 10
# Requests other than WebRTC offers that start a call.
_STARTS = {
    ("POST", "/start"),
    ("POST", "/daily-dialin-webhook"),
    ("GET", "/daily"),
}
_TWILIO_WEBHOOK = ("POST", "/")
_TWILIO_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Reject reason="busy"/></Response>\n'
)
_SETUP_FAILED = "the call could not be set up; the bot's log says why"
_BAD_OFFER = b'{"detail": "the offer could not be used"}'
_BUSY = "every slot is in use; try again in a moment"


class RefuseWhenFull:
    """ASGI middleware that refuses new callers while no slot is free.

    Browsers and Daily's webhook get 503 with Retry-After; Twilio gets a busy tone. All other
    requests pass, and so does the renegotiation of a WebRTC connection that exists.

    Args:
        app: The runner's app.
        full: Returns whether all slots are in use.
    """

    def __init__(self, app: ASGIApp, full: Callable[[], bool]):
        self._app = app
        self._full = full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if client := scope.get("client"):
            client_address.set(client[0])
        if scope["type"] != "http":
            # A WebSocket that finds no free slot is closed by BotHost.
            await self._app(scope, receive, send)
            return
        request = (scope["method"], scope["path"])
        if not self._full():
            await self._pass_on(request, scope, receive, send)
            return
        if request == _TWILIO_WEBHOOK:
            _log_refusal()
            await _respond(send, 200, "application/xml", _TWILIO_BUSY)
            return
        if scope["method"] == "POST" and OFFER.fullmatch(scope["path"]):
            body = await read_body(receive, MAX_BODY_BYTES) or b""
            if _renegotiates(body):
                await self._app(scope, replay(body, receive), send)
                return
        elif request not in _STARTS:
            await self._app(scope, receive, send)
            return
        _log_refusal()
        await _respond(send, 503, "application/json", json.dumps({"detail": _BUSY}).encode())

    async def _pass_on(
        self, request: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        responded = False

        async def noting_send(message: Message) -> None:
            nonlocal responded
            responded = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as error:
            if responded:
                raise  # the call itself has failed, which follows the response
            # The client needs a response; a traceback would not help, and may quote the client.
            if OFFER.fullmatch(scope["path"]):
                logger.bind(client=client_address.get()).warning(
                    "an offer could not be used: {}", type(error).__name__
                )
                await _respond(send, 400, "application/json", _BAD_OFFER)
            elif request in _STARTS:  # such as a room that Daily refused
                logger.bind(client=client_address.get()).error(
                    "a call could not start: {}", error_summary(error)
                )
                body = json.dumps({"detail": _SETUP_FAILED}).encode()
                await _respond(send, 502, "application/json", body)
            else:
                raise


def error_summary(error: Exception) -> str:
    """The message of an error on one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _log_refusal() -> None:
    client = client_address.get()
    logger.bind(client=client).info("call refused: client {}: {}", client or "unknown", _BUSY)


def _renegotiates(body: bytes) -> bool:
    """Whether an offer belongs to a connection that exists."""
    try:
        return bool(json.loads(body).get("pc_id"))
    except (ValueError, AttributeError, RecursionError):
        return False


async def _respond(send: Send, status: int, content_type: str, body: bytes) -> None:
    retry = {"retry-after": str(_RETRY_SECONDS)} if status == 503 else {}
    await respond(send, status, body, content_type=content_type, headers=retry)
