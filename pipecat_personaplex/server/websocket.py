"""A client's WebSocket as the endpoints use it: messages, close codes and one disconnect error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from loguru import Logger

NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED = 1003
REFUSED = 1008
FAILED = 1011
TRY_LATER = 1013
TAKEN_OVER = 4001

_NO_CODE = 1005

# A program has closed the connection, or a browser has left its page.
_GOODBYE_CODES = (NORMAL, GOING_AWAY)

_SEND_SECONDS = 10.0
"""A client that reads nothing for this time counts as disconnected."""
_CLOSE_SECONDS = 2.0
"""Time that a client has to read everything before the close frame."""


def close_code(error: PersonaPlexError | None) -> int:
    """Return the WebSocket close code for an error; None is a normal end."""
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
    """The connection is closed, or the client does not respond any more."""


class ClosedByClient(Disconnected):
    """The client has closed the connection on purpose."""


class ClientSocket:
    """A client's WebSocket.

    Args:
        websocket: The WebSocket before its upgrade.

    Example::

        socket = ClientSocket(websocket)
        await socket.accept()
        await socket.send(await socket.receive())
        await socket.close(NORMAL)
    """

    def __init__(self, websocket: WebSocket):
        self._websocket = websocket

    async def accept(self) -> None:
        """Complete the upgrade; select our subprotocol if the client offers it.

        Raises:
            Disconnected: The client has disconnected meanwhile.
        """
        offered = self._websocket.scope.get("subprotocols", ())
        try:
            await self._websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Disconnected from error

    async def send(self, message: str | bytes) -> None:
        """Send a text or binary message.

        Returns when the client has read enough of the messages before it.

        Raises:
            Disconnected: The client has disconnected, or reads nothing.
        """
        send = (
            self._websocket.send_text(message)
            if isinstance(message, str)
            else self._websocket.send_bytes(message)
        )
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await send
        # RuntimeError: another task, or uvicorn's protocol, has closed the connection.
        except (WebSocketDisconnect, RuntimeError, TimeoutError) as error:
            raise Disconnected from error

    async def receive(self) -> str | bytes:
        """Wait for the client's next message.

        Raises:
            ClosedByClient: The client has closed the connection on purpose.
            Disconnected: The connection has ended in another way.
        """
        # One read of the socket may return thousands of small messages; receiving them does not
        # suspend this task. Let the tasks of other clients run in between.
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
        """Close the connection; does nothing if it is closed or the client reads nothing."""
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._websocket.close(code)


def _is_goodbye(disconnect: Message) -> bool:
    # uvicorn reports 1005 both for a close frame without a code, which a browser's close() sends,
    # and for a connection that broke. Only after a close frame is there a (possibly empty) reason.
    code = disconnect.get("code")
    return code in _GOODBYE_CODES or (code == _NO_CODE and "reason" in disconnect)


def report_defect(error: Exception, log: Logger) -> SessionFailed:
    """Log a defect of the server, and return the error that the client sees instead.

    Args:
        error: What was raised; it may contain a client's data and stays in the log.
        log: Logger with the session or the client bound.
    """
    log.opt(exception=error).error("the server failed to serve this session")
    return SessionFailed("the server failed to serve this session; its log says why")


async def run_duplex(
    listen: Coroutine[object, object, None], speak: Coroutine[object, object, None]
) -> None:
    """Receive and send at the same time until ``speak`` returns or the client disconnects.

    Args:
        listen: Receives messages; may return before ``speak``.
        speak: Sends messages; ``listen`` is cancelled when it returns.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listen)
            await speak
            listening.cancel()
    except* Disconnected:
        pass
