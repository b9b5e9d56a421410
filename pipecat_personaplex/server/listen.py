"""The socket a server listens at, and how patient it is with those who connect."""

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
from pipecat_personaplex.server.uvicorn_protocols import WEBSOCKET, http_protocol

BACKLOG = 2048
"""Connections that may wait to be accepted: a thousand clients that come back at once."""
OTHER_CONNECTIONS = 1024
"""Beside WebSockets: that are not one yet, are being refused, or ask how things are."""

# In a turn of the loop, which asyncio would spend on all that wait, while running calls do too.
_ACCEPTED_AT_ONCE = 16
_PING_SECONDS = 5.0
_PONG_SECONDS = 10.0
_LAST_SECONDS = 3


def open_socket(host: str, port: int) -> socket:
    """A socket that listens.

    Args:
        host: A name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: The address cannot be had.
    """
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: there is no such address") from None
    # Of a name with addresses of both kinds, as localhost, IPv4's: clients try that one too.
    family, *_, address = min(found, key=lambda info: info[0] != AF_INET)
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
    most = config.max_connections + OTHER_CONNECTIONS
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=http_protocol(config.hello_seconds, most),
        ws=WEBSOCKET,
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
