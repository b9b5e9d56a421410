"""WebSockets to a server."""

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
from pipecat_personaplex.remote.address import Address

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
        EngineUnreachable: There is no connection; ``PermanentlyUnreachable`` if a retry is useless.
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


CONNECT_SECONDS = 2.0

_STATUS = {
    403: "it does not take this client (403)",
    404: "what answers there is not a PersonaPlex server (404); is the path right? usually there "
    "is none",
    503: "it takes no more connections (503)",
}
_REJECTIONS = (401, 403, 404)
_SHOWN = 300
# OpenSSL's codes: self-signed, alone or in a chain, and an issuer that nobody here knows.
_UNTRUSTED = (18, 19, 20, 21)
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


class PermanentlyUnreachable(EngineUnreachable):
    """It answers, and waiting will not change what it says."""


def unreachable(
    address: Address, error: Exception, seconds: float = CONNECT_SECONDS
) -> EngineUnreachable:
    """What went wrong with a connection.

    Args:
        address: Of the server.
        error: What was raised.
        seconds: How long the answer was waited for.
    """
    kind: type[EngineUnreachable] = EngineUnreachable
    match error:
        case ssl.SSLError():
            kind, reason = PermanentlyUnreachable, _tls(error)
        case ConnectionRefusedError():
            reason = "connection refused"
        case ConnectionResetError() if address.secure:
            reason = "the connection was reset; if it has no TLS, use ws:// instead of wss://"
        case TimeoutError():
            reason = f"no answer within {seconds:g} s"
        case InvalidStatus(response=response):
            kind = PermanentlyUnreachable if _final(response.status_code) else kind
            reason = _status(address, response)
        case ConnectionClosed() | OSError() | EOFError():
            reason = f"the connection failed: {str(error) or type(error).__name__}"
        case WebSocketException() | ValueError():
            kind, reason = (
                PermanentlyUnreachable,
                f"what answers there is not a WebSocket server{_why(error)}",
            )
            if isinstance(error, InvalidMessage) and not address.secure:
                reason += "; if it has TLS, use wss://"
        case _:
            reason = f"{type(error).__name__}: {error}"
    return kind(f"{address.url}: {reason}")


def _why(error: WebSocketException | ValueError) -> str:
    # The value of a header may be a key.
    if isinstance(error, InvalidHeader | ValueError):
        return f" ({type(error).__name__})"
    return f": {error}"


def _tls(error: ssl.SSLError) -> str:
    if error.reason in _NO_TLS:
        return "it speaks no TLS; use ws:// instead of wss://"
    reason = f"TLS failed: {getattr(error, 'verify_message', None) or error.reason or error}"
    if getattr(error, "verify_code", None) in _UNTRUSTED:
        reason += "; pass ssl_context, or set SSL_CERT_FILE to its certificate"
    return reason


def _final(status: int) -> bool:
    return status in _REJECTIONS or 300 <= status < 400


def _status(address: Address, response: Response) -> str:
    status = response.status_code
    if 300 <= status < 400:
        return _redirection(address, response)
    if status == 401:
        if address.api_key is None:
            return "it wants a key (401); set PERSONAPLEX_API_KEY, or api_key="
        return "it does not know this key (401)"
    told = "" if status in _REJECTIONS else _own_words(response)
    return f"{told} ({status})" if told else _STATUS.get(status, f"it answers with HTTP {status}")


def _redirection(address: Address, response: Response) -> str:
    try:
        target = urlsplit(urljoin(address.url, response.headers.get_all("Location")[0]))
    except (IndexError, ValueError):
        return f"it sends you elsewhere ({response.status_code})"
    # Neither a key before the host nor one in the query.
    shown = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"[:_SHOWN]
    scheme = "wss" if target.scheme in ("https", "wss") else "ws"
    return f"it sends you to {shown} ({response.status_code}); use that address, as {scheme}://"


def _own_words(response: Response) -> str:
    try:
        message = parse_server((response.body or b"").decode(errors="replace"))
    except BadMessage:
        return ""
    return " ".join(message.message.split())[:_SHOWN] if isinstance(message, Error) else ""
