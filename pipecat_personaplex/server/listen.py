"""The socket that a server listens on, its TLS, and the settings of uvicorn."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from socket import (
    AF_INET,
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

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.protocol.session_messages import MAX_MESSAGE_BYTES
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.connection_limits import ConnectionLimits
from pipecat_personaplex.server.uvicorn_protocols import WEBSOCKET, http_protocol

BACKLOG = 2048
"""Connections that may wait to be accepted, such as a thousand clients that reconnect at once."""
OTHER_CONNECTIONS = 1024
"""Connections in addition to WebSockets: upgrades, refusals, health checks and metrics."""
_HEALTH_CONNECTIONS = 128

_PING_SECONDS = 5.0
_PONG_SECONDS = 10.0
_SHUTDOWN_SECONDS = 3


def open_socket(host: str, port: int) -> socket:
    """Open a listening socket.

    Args:
        host: A name or an address of this machine.
        port: 0 for any free port.

    Raises:
        ConfigError: The address does not exist or is in use.
    """
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: there is no such address") from None
    # A name such as localhost may have IPv4 and IPv6 addresses. Take IPv4: every client tries it.
    family, *_, address = min(found, key=lambda info: info[0] != AF_INET)
    try:
        both = host == "::" and has_dualstack_ipv6()
        listening = create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}") from None
    # asyncio sets this only on sockets that it creates itself; connections inherit it. Without it,
    # the second of two small messages waits about 40 ms until the client acknowledges the first.
    listening.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listening


def tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """Return the TLS settings of a server; None without files.

    Args:
        certfile: The certificate and its chain, PEM.
        keyfile: Its private key, PEM; None if it is in the same file.

    Raises:
        ConfigError: A file cannot be read, or certificate and key do not match.
    """
    if certfile is None:
        if keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return None
    files = f"--ssl-certfile {certfile}" + ("" if keyfile is None else f", --ssl-keyfile {keyfile}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        for path in filter(None, (certfile, keyfile)):
            path.read_bytes()  # ssl does not report which of the two it cannot read.
        # Without a password argument, OpenSSL prompts for one on the terminal and blocks.
        context.load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigError(f"{files}: not a certificate and its unencrypted key: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    return context


def connection_limits(config: ServerConfig) -> ConnectionLimits:
    """Return the limits of the port that clients connect to."""
    # All clients behind one address may connect again at once, such as after a restart.
    return ConnectionLimits(
        config.address_rate,
        burst=max(config.max_connections, 10 * config.address_rate),
        max_connections=config.max_connections + OTHER_CONNECTIONS,
    )


def health_limits() -> ConnectionLimits:
    """Return the limits of a port for health checks and metrics alone."""
    return ConnectionLimits(0, burst=0, max_connections=_HEALTH_CONNECTIONS)


def uvicorn_config(
    app: ASGIApp,
    config: ServerConfig,
    limits: ConnectionLimits,
    tls: ssl.SSLContext | None = None,
) -> uvicorn.Config:
    """Return the settings with which uvicorn runs the application.

    Args:
        app: From ``create_app``.
        config: The server's limits.
        limits: Those of the port; its socket must be guarded by them.
        tls: From ``tls_context``.
    """
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=http_protocol(config.hello_seconds, limits),
        ws=WEBSOCKET,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PONG_SECONDS,
        ws_per_message_deflate=False,  # Audio does not compress; a compression bomb would expand.
        lifespan="off",
        log_config=None,
        log_level="warning",  # At lower levels it logs URLs, which may contain keys.
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
