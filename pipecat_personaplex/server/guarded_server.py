"""uvicorn's server on a guarded socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket

import uvicorn

from pipecat_personaplex.server.acceptor import Acceptor

SERVER_USES = ("config", "lifespan", "server_state", "servers", "should_exit", "started")
"""Attributes of uvicorn's class that ``startup`` uses; a test checks that they exist."""

_TLS_CLOSE_SECONDS = 5.0


class GuardedServer(uvicorn.Server):
    """Serves one listening socket, whose connections begin in turn; see ``Acceptor``.

    Args:
        config: uvicorn's settings.
        listening: A listening socket, guarded by ``ConnectionLimits``.
        handshake_seconds: How long a TLS handshake may take.
    """

    def __init__(
        self, config: uvicorn.Config, listening: socket, *, handshake_seconds: float = 10.0
    ):
        super().__init__(config)
        self._listening = listening
        self._handshake_seconds = handshake_seconds

    async def serve(self, sockets: list[socket] | None = None) -> None:
        """Serve until ``should_exit``; the argument is not used."""
        await super().serve()  # without sockets: the acceptor closes its own

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to accept connections."""
        await self.lifespan.startup()
        config = self.config

        def protocol() -> asyncio.Protocol:
            made: Callable[..., asyncio.Protocol] = config.http_protocol_class
            return made(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        acceptor = Acceptor(
            self._listening,
            protocol,
            config.ssl,
            handshake_seconds=self._handshake_seconds,
            close_seconds=_TLS_CLOSE_SECONDS,
        )
        acceptor.start()
        self.servers = [acceptor]  # type: ignore[list-item]
        self.started = True
