"""A WebSocket as the endpoints see it: messages, and one way of being gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

from loguru import logger
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipecat_personaplex.errors import (
    EngineDraining,
    EngineFull,
    PersonaPlexError,
    SessionFailed,
    SessionLost,
    UserError,
)
from pipecat_personaplex.protocol.session_messages import SUBPROTOCOL

NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED = 1003
REFUSED = 1008
FAILED = 1011
TRY_LATER = 1013
TAKEN_OVER = 4001

_NO_CODE = 1005

# Closed by a program, or by a browser whose page is left.
_GOODBYES = (NORMAL, GOING_AWAY)

_SEND_SECONDS = 10.0
"""A client that reads nothing for so long is gone."""
_CLOSE_SECONDS = 2.0
"""What it has to read all before the close frame."""


def close_code(error: PersonaPlexError | None) -> int:
    """The code that a connection is closed with after an error, or after none."""
    match error:
        case None:
            return NORMAL
        case EngineFull():
            return TRY_LATER
        case EngineDraining():
            return GOING_AWAY
        case UserError() | SessionLost():
            return REFUSED
        case _:
            return FAILED


class Disconnected(Exception):
    """The client is not there any more, or the connection is closed."""


class ClosedByClient(Disconnected):
    """The client has closed the connection on purpose."""


class ClientSocket:
    """A client's WebSocket.

    Args:
        websocket: Not yet accepted.
    """

    def __init__(self, websocket: WebSocket):
        self._websocket = websocket

    async def accept(self) -> None:
        """Complete the upgrade, with our subprotocol where the client offers it.

        Raises:
            Disconnected: The client has left meanwhile.
        """
        offered = self._websocket.scope.get("subprotocols", ())
        try:
            await self._websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Disconnected from error

    async def send(self, message: str | bytes) -> None:
        """Send a message; text for ``str``.

        Returns when the client has read enough of what was sent before.

        Raises:
            Disconnected: The client has left, or reads nothing.
        """
        send = (
            self._websocket.send_text(message)
            if isinstance(message, str)
            else self._websocket.send_bytes(message)
        )
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await send
        # RuntimeError: another task, or the protocol below, has closed the connection.
        except (WebSocketDisconnect, RuntimeError, TimeoutError) as error:
            raise Disconnected from error

    async def receive(self) -> str | bytes:
        """The client's next message.

        Raises:
            ClosedByClient: The client has said goodbye.
            Disconnected: There will be none.
        """
        # One read of the socket may bring thousands of small messages, which then wait without
        # a pause between them; other clients have their turn all the same.
        await asyncio.sleep(0)
        try:
            message = await self._websocket.receive()
        except RuntimeError as error:
            raise Disconnected from error
        if message["type"] == "websocket.disconnect":
            raise ClosedByClient if _is_goodbye(message) else Disconnected
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def close(self, code: int) -> None:
        """Close the connection; does nothing where it is closed or the client reads nothing."""
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._websocket.close(code)


def _is_goodbye(disconnect: Message) -> bool:
    # uvicorn has 1005 both for a close frame without a code, as a browser's close() sends it, and
    # for a connection that was cut; of these, only the frame has a reason, if an empty one.
    code = disconnect.get("code")
    return code in _GOODBYES or (code == _NO_CODE and "reason" in disconnect)


def our_failure(path: str, error: Exception) -> SessionFailed:
    """What a client is told of a defect, which is logged.

    Args:
        path: Of the endpoint.
        error: What went wrong; the client does not see it.
    """
    logger.opt(exception=error).error("a session of {} failed", path)
    return SessionFailed("the server failed to serve this session; its log says why")


async def run_duplex(
    listen: Coroutine[object, object, None], speak: Coroutine[object, object, None]
) -> None:
    """Listen and speak, until there is no more to say or the client is gone.

    Args:
        listen: May end before the other.
        speak: Ends the conversation with its own end.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listen)
            await speak
            listening.cancel()
    except* Disconnected:
        pass
