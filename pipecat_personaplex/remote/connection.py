"""WebSocket connections to a server, and one-line reasons for those that fail."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHeader,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)
from websockets.http11 import Response

from pipecat_personaplex.errors import BadMessage, EngineUnreachable, SessionFailed
from pipecat_personaplex.protocol.session_messages import Error, ServerMessage, parse_server
from pipecat_personaplex.remote.address import ServerAddress

CONNECT_SECONDS = 2.0
"""Time limit for TCP, TLS and the upgrade together, and again for the server's hello."""

# The server's hello lists all voices; no other message of a server is longer.
_MAX_MESSAGE_BYTES = 1 << 20
_CLOSE_SECONDS = 0.5

# The request is at fault (a prompt that is too long for the URL), not the server.
_BAD_REQUEST_STATUSES = (400, 413, 414, 431)
# The server refuses this client, or is not a PersonaPlex server: a retry has the same result.
_PERMANENT_STATUSES = (401, 403, 404)
_STATUS_REASONS = {
    403: "the server refuses this client (403)",
    404: "not a PersonaPlex server (404); check the path of the URL, which is usually empty",
    503: "the server accepts no more connections (503)",
}
_MAX_SHOWN_CHARS = 300

# OpenSSL's verify codes: a self-signed certificate, alone (18) or in a chain (19), and an issuer
# that is not in the trust store (20, 21).
_UNTRUSTED_CODES = (18, 19, 20, 21)
# What OpenSSL reports when the peer sends plain HTTP.
_PLAIN_TEXT_REASONS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")

# At DEBUG, websockets logs every header of the handshake, the API key included.
_LOGGER = logging.getLogger(f"{__name__}.websockets")
_LOGGER.setLevel(logging.INFO)


class PermanentlyUnreachable(EngineUnreachable):
    """The server responds, and a retry would get the same response."""


class _Connect(connect):
    """Follows no redirect: it would lose the API key or lead to a host the caller did not name."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def open_websocket(
    address: ServerAddress,
    *,
    ping_seconds: float,
    pong_seconds: float,
    query: Mapping[str, object] | None = None,
) -> ClientConnection:
    """Connect to a server.

    Args:
        address: The server.
        ping_seconds: Interval of WebSocket pings.
        pong_seconds: The connection ends if a ping gets no pong for this long.
        query: Query parameters of the URL.

    Raises:
        EngineUnreachable: The connection failed; ``PermanentlyUnreachable`` if a retry is useless.
        SessionFailed: The server refuses this query.
    """
    options: dict[str, Any] = {"ssl": address.ssl_context}
    if address.api_key is not None:
        options["additional_headers"] = {"Authorization": f"Bearer {address.api_key}"}
    try:
        return await _Connect(
            f"{address.url}?{urlencode(query)}" if query else address.url,
            compression=None,  # audio is either compressed already or not worth the time
            proxy=None,  # probe() cannot use a proxy, and a proxy may delay audio
            open_timeout=CONNECT_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            ping_interval=ping_seconds,
            ping_timeout=pong_seconds,
            max_size=_MAX_MESSAGE_BYTES,
            logger=_LOGGER,
            **options,
        )
    except (OSError, WebSocketException, ValueError, EOFError) as error:
        unreachable = as_unreachable(address, error)
        if (
            query
            and isinstance(error, InvalidStatus)
            and error.response.status_code in _BAD_REQUEST_STATUSES
        ):
            raise SessionFailed(f"{unreachable}; the persona may be too long") from error
        raise unreachable from error


async def probe(address: ServerAddress) -> None:
    """Connect by TCP (and TLS) and disconnect without a request.

    NVIDIA's server treats every WebSocket as a caller, so it can only be polled this way.

    Raises:
        EngineUnreachable: The connection failed.
    """
    host, port = address.host_and_port
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=address.ssl_context)
    except (OSError, ValueError) as error:
        raise as_unreachable(address, error) from error
    writer.transport.abort()


async def receive_control(websocket: ClientConnection) -> ServerMessage:
    """Receive the next message, which must be a control message (JSON text).

    Raises:
        BadMessage: Binary, or not a valid server message.
    """
    message = await websocket.recv()
    if isinstance(message, bytes):
        raise BadMessage("the server sent audio where a JSON message was expected")
    return parse_server(message)


def as_unreachable(
    address: ServerAddress, error: Exception, seconds: float = CONNECT_SECONDS
) -> EngineUnreachable:
    """Turn a connection's exception into an error with one line that says what to do.

    Args:
        address: The server.
        error: What the connection raised.
        seconds: The time limit that was in force, for the text of a ``TimeoutError``.
    """
    kind: type[EngineUnreachable] = EngineUnreachable
    match error:
        case ssl.SSLError():
            kind, reason = PermanentlyUnreachable, _tls_reason(error)
        case ConnectionRefusedError():
            reason = "connection refused"
        case ConnectionResetError() if address.secure:
            reason = (
                "the connection was reset; if the server does not use TLS, use ws:// instead of "
                "wss://"
            )
        case TimeoutError():
            reason = f"no response within {seconds:g} s"
        case InvalidStatus(response=response):
            if _is_permanent(response.status_code):
                kind = PermanentlyUnreachable
            reason = _status_reason(address, response)
        case ConnectionClosed() | OSError() | EOFError():
            reason = f"the connection failed: {str(error) or type(error).__name__}"
        case WebSocketException() | ValueError():
            kind, reason = PermanentlyUnreachable, _handshake_reason(address, error)
        case _:
            reason = f"{type(error).__name__}: {error}"
    return kind(f"{address.url}: {reason}")


def _tls_reason(error: ssl.SSLError) -> str:
    if error.reason in _PLAIN_TEXT_REASONS:
        return "the server does not use TLS; use ws:// instead of wss://"
    reason = f"TLS failed: {getattr(error, 'verify_message', None) or error.reason or error}"
    if getattr(error, "verify_code", None) in _UNTRUSTED_CODES:
        reason += "; pass ssl_context, or set SSL_CERT_FILE to the server's certificate"
    return reason


def _handshake_reason(address: ServerAddress, error: WebSocketException | ValueError) -> str:
    # The text of these two contains a header's value, which may be the API key.
    if isinstance(error, InvalidHeader | ValueError):
        reason = f"not a WebSocket server ({type(error).__name__})"
    else:
        reason = f"not a WebSocket server: {error}"
    if isinstance(error, InvalidMessage) and not address.secure:
        reason += "; if the server uses TLS, use wss://"
    return reason


def _is_permanent(status: int) -> bool:
    return status in _PERMANENT_STATUSES or 300 <= status < 400


def _status_reason(address: ServerAddress, response: Response) -> str:
    status = response.status_code
    if 300 <= status < 400:
        return _redirect_reason(address, response)
    if status == 401:
        if address.api_key is None:
            return "the server requires an API key (401); set PERSONAPLEX_API_KEY, or pass api_key"
        return "the server does not accept this API key (401)"
    message = "" if status in _PERMANENT_STATUSES else _error_message_of(response)
    if message:
        return f"{message} ({status})"
    return _STATUS_REASONS.get(status, f"the server responds with HTTP status {status}")


def _redirect_reason(address: ServerAddress, response: Response) -> str:
    status = response.status_code
    try:
        target = urlsplit(urljoin(address.url, response.headers.get_all("Location")[0]))
    except (IndexError, ValueError):
        return f"the server redirects to an invalid address ({status})"
    # User information before the host and the query may contain a key.
    host = target.netloc.rpartition("@")[2]
    shown = f"{target.scheme}://{host}{target.path}"[:_MAX_SHOWN_CHARS]
    scheme = "wss" if target.scheme in ("https", "wss") else "ws"
    return f"the server redirects to {shown} ({status}); use that address, as {scheme}://"


def _error_message_of(response: Response) -> str:
    """The text of the ``error`` in a response's body, on one line; empty without an error."""
    try:
        message = parse_server((response.body or b"").decode(errors="replace"))
    except BadMessage:
        return ""
    if not isinstance(message, Error):
        return ""
    return " ".join(message.message.split())[:_MAX_SHOWN_CHARS]
