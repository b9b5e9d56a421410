"""The socket a server listens at, and how patient it is with those who connect."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from socket import (
    IPPROTO_TCP,
    SOCK_STREAM,
    TCP_NODELAY,
    create_server,
    getaddrinfo,
    has_dualstack_ipv6,
    socket,
)

import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.protocol.messages import MAX_MESSAGE_BYTES
from pipecat_personaplex.server.config import ServerConfig

BACKLOG = 2048
"""Connections that may wait to be accepted: a thousand clients that come back at once."""

# In a turn of the loop, which asyncio would spend on all that wait, while running calls do too.
_ACCEPTED_AT_ONCE = 16
_PING_SECONDS = 5.0
_PONG_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_LAST_SECONDS = 3
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def open_socket(host: str, port: int) -> socket:
    """A socket that listens.

    Args:
        host: A name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: The address cannot be had.
    """
    try:
        family, *_, address = getaddrinfo(host, port, type=SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: there is no such address") from None
    try:
        both = host == "::" and has_dualstack_ipv6()
        listening = create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}") from None
    # asyncio does so only for sockets of its own making. Connections inherit it; without it, the
    # second of two small messages waits some 40 ms for the client to acknowledge the first.
    listening.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listening


def tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """What makes a server speak TLS; None without files.

    Args:
        certfile: The certificate and its chain, PEM.
        keyfile: Its private key, PEM; None if it is in the same file.

    Raises:
        ConfigError: The files cannot be used.
    """
    if certfile is None:
        if keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return None
    files = f"--ssl-certfile {certfile}" + ("" if keyfile is None else f", --ssl-keyfile {keyfile}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        for path in filter(None, (certfile, keyfile)):
            path.read_bytes()  # ssl does not say which of the two it cannot read
        # Without a password of ours, OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigError(f"{files}: not a certificate and its unencrypted key: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    return context


def uvicorn_config(
    app: ASGIApp, config: ServerConfig, tls: ssl.SSLContext | None = None
) -> uvicorn.Config:
    """How uvicorn runs the application.

    Args:
        app: From ``create_app``.
        config: Limits.
        tls: From ``tls_context``.
    """

    class Http(_Http):
        seconds = config.hello_seconds

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Http,
        ws=_WebSocket,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PONG_SECONDS,
        ws_per_message_deflate=False,  # sound does not shrink, and a bomb would grow
        lifespan="off",
        log_config=None,
        log_level="warning",  # below, it logs whole URLs, and these may hold keys
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=_LAST_SECONDS,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )


class _Http(H11Protocol):
    """Closes a connection that keeps its request to itself; uvicorn would wait for ever."""

    seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._check, self.cycle)

    def _check(self, before: object) -> None:
        if self.transport.get_protocol() is not self:
            return  # it has become a WebSocket
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.cycle is before and not busy:
            self.transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)


class _WebSocket(WebSocketsSansIOProtocol):
    """Lets go of clients that do not read: a socket that is closed waits for them to.

    And refuses in silence: uvicorn logs each refusal as an error of the application's.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            # The first data are a whole request; of one that websockets does not take, as with a
            # line of 8 KiB, uvicorn hears nothing, and would leave the client waiting.
            self.transport.write(_BAD_REQUEST)
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = self.handshake_complete or not message.get("more_body")

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)
