"""WebSockets to a server."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from pipecat_personaplex.errors import BadMessage, SessionFailed
from pipecat_personaplex.protocol.messages import ServerMessage, parse_server
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.reasons import CONNECT_SECONDS, unreachable

# A server may list many voices, and say no more than that at once.
_MAX_MESSAGE_BYTES = 1 << 20
_CLOSE_SECONDS = 0.5
# What is wrong with one request says nothing of the server.
_BAD_REQUEST = (400, 413, 414, 431)

# At DEBUG, websockets writes every header of a handshake to its logger, the key among them.
_LOGGER = logging.getLogger(f"{__name__}.websockets")
_LOGGER.setLevel(logging.INFO)


class _Connect(connect):
    """Follows no redirection: it would go without the key, or take the caller where nobody said."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def open_websocket(
    address: Address,
    *,
    ping_seconds: float,
    pong_seconds: float,
    query: Mapping[str, object] | None = None,
) -> ClientConnection:
    """A WebSocket to a server.

    Args:
        address: Of the server.
        ping_seconds: Between two pings.
        pong_seconds: After which one that is not answered ends the connection.
        query: For the URL.

    Raises:
        EngineUnreachable: There is none to be had; ``Rejected`` where trying again is no use.
        SessionFailed: There is one, but not with this query.
    """
    options: dict[str, Any] = {}
    if address.ssl_context is not None:
        options["ssl"] = address.ssl_context
    if address.api_key is not None:
        options["additional_headers"] = {"Authorization": f"Bearer {address.api_key}"}
    try:
        return await _Connect(
            f"{address.url}?{urlencode(query)}" if query else address.url,
            compression=None,  # audio has been compressed, or is not worth it
            proxy=None,  # a probe could not use it, and it is one more that may delay audio
            open_timeout=CONNECT_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            ping_interval=ping_seconds,
            ping_timeout=pong_seconds,
            max_size=_MAX_MESSAGE_BYTES,
            logger=_LOGGER,
            **options,
        )
    except (OSError, WebSocketException, ValueError, EOFError) as error:
        reason = unreachable(address, error)
        if query and isinstance(error, InvalidStatus):
            if error.response.status_code in _BAD_REQUEST:
                raise SessionFailed(f"{reason}; the persona may be too long") from error
        raise reason from error


async def probe(address: Address) -> None:
    """Connect without saying anything, for a server that takes whoever speaks for a caller.

    Raises:
        EngineUnreachable: Nobody answers.
    """
    host, port = address.host
    context = (address.ssl_context or ssl.create_default_context()) if address.secure else None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, ValueError) as error:
        raise unreachable(address, error) from error
    writer.transport.abort()


async def receive_control(websocket: ClientConnection) -> ServerMessage:
    """The next message, which is not audio.

    Raises:
        BadMessage: It is none that there is.
    """
    message = await websocket.recv()
    if isinstance(message, bytes):
        raise BadMessage("audio came where words were due")
    return parse_server(message)
