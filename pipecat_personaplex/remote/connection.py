"""Where a server is, and WebSockets to it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from pipecat_personaplex.errors import BadMessage, ConfigError, EngineUnreachable
from pipecat_personaplex.protocol.chat import CHAT_PATH
from pipecat_personaplex.protocol.messages import SESSION_PATH, ServerMessage, parse_server

CONNECT_SECONDS = 2.0

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
# A server may list many voices, and say no more than that at once.
_MAX_MESSAGE_BYTES = 1 << 20
_CLOSE_SECONDS = 0.5
_STATUS = {
    401: "it wants a key, or another one (401)",
    403: "it does not take this client (403)",
    404: "what answers there is not a PersonaPlex server (404)",
    503: "it takes no more connections (503)",
}
_REJECTIONS = (401, 403, 404)

# At DEBUG, websockets writes every header of a handshake to its logger, the key among them.
_LOGGER = logging.getLogger(f"{__name__}.websockets")
_LOGGER.setLevel(logging.INFO)


class Rejected(EngineUnreachable):
    """It answers, and waiting will not change what it says."""


@dataclass(frozen=True)
class Address:
    """A server, and how to reach it.

    Attributes:
        url: A ``ws://`` or ``wss://`` URL, its path included.
        chat: Whether it speaks NVIDIA's protocol.
        api_key: Sent as a bearer token.
        ssl_context: For ``wss://``; None verifies as is usual.
    """

    url: str
    chat: bool
    api_key: str | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str | None, ssl_context: ssl.SSLContext | None) -> Address:
        """The server that a URL names; its path picks the protocol.

        Raises:
            ConfigError: It cannot be one.
        """
        try:
            parts = urlsplit(url)
            usable = bool(parts.hostname) and parts.scheme in _SCHEMES and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            shown = url.rpartition("@")[2]  # not the key that may be before it
            raise ConfigError(f"an engine's URL is like wss://host:8998, not {shown!r}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"the URL of the engine at {parts.hostname} has more than a path; a key is given "
                "as api_key"
            )
        path = parts.path.rstrip("/")
        if not path.endswith((CHAT_PATH, SESSION_PATH)):
            path += SESSION_PATH
        scheme = _SCHEMES[parts.scheme]
        return cls(
            urlunsplit((scheme, parts.netloc, path, "", "")),
            path.endswith(CHAT_PATH),
            api_key,
            ssl_context if scheme == "wss" else None,
        )

    @property
    def host(self) -> tuple[str, int]:
        """Name and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.secure else 80)

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return self.url.startswith("wss:")


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
    """
    options: dict[str, Any] = {}
    if address.ssl_context is not None:
        options["ssl"] = address.ssl_context
    if address.api_key is not None:
        options["additional_headers"] = {"Authorization": f"Bearer {address.api_key}"}
    try:
        return await connect(
            f"{address.url}?{urlencode(query)}" if query else address.url,
            compression=None,  # audio has been compressed, or is not worth it
            open_timeout=CONNECT_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            ping_interval=ping_seconds,
            ping_timeout=pong_seconds,
            max_size=_MAX_MESSAGE_BYTES,
            logger=_LOGGER,
            **options,
        )
    except (OSError, InvalidHandshake, ValueError, EOFError) as error:
        raise unreachable(address, error) from error


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
    except OSError as error:
        raise unreachable(address, error) from error
    writer.transport.abort()


def unreachable(address: Address, error: Exception) -> EngineUnreachable:
    """What went wrong with a connection, for a person to read."""
    kind: type[EngineUnreachable] = EngineUnreachable
    match error:
        case ssl.SSLError():
            reason = getattr(error, "verify_message", None) or error.reason or error
            kind, reason = Rejected, f"TLS failed: {reason}"
        case ConnectionRefusedError():
            reason = "connection refused"
        case TimeoutError():
            reason = f"no answer within {CONNECT_SECONDS:g} s"
        case InvalidStatus(response=response):
            status = response.status_code
            kind = Rejected if status in _REJECTIONS else kind
            reason = _STATUS.get(status, f"it answers with HTTP status {status}")
        case InvalidHandshake() | ValueError():
            kind, reason = Rejected, f"what answers there is not a WebSocket server: {error}"
        case ConnectionClosed() | OSError() | EOFError():
            reason = f"the connection failed: {str(error) or type(error).__name__}"
        case _:
            reason = f"{type(error).__name__}: {error}"
    return kind(f"{address.url}: {reason}")


async def receive_control(websocket: ClientConnection) -> ServerMessage:
    """The next message, which is not audio.

    Raises:
        BadMessage: It is none that there is.
    """
    message = await websocket.recv()
    if isinstance(message, bytes):
        raise BadMessage("audio came where words were due")
    return parse_server(message)
