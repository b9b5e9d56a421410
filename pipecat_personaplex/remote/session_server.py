"""What ``/v1/session`` says of itself before a session is opened."""

from __future__ import annotations

import asyncio

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.errors import BadMessage, EngineUnreachable
from pipecat_personaplex.protocol.messages import (
    VERSION,
    AudioFormat,
    Error,
    Hello,
    ServerMessage,
)
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.connection import open_websocket, receive_control
from pipecat_personaplex.remote.reasons import CONNECT_SECONDS, Rejected, unreachable
from pipecat_personaplex.remote.servers import Server
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.stream import SessionLine

_PING_SECONDS = 2.0
_PONG_SECONDS = 4.0


class SessionServer(Server):
    """A ``personaplex serve``.

    Args:
        address: Where it is.
        audio: How frames travel.
    """

    def __init__(self, address: Address, audio: AudioFormat):
        super().__init__(address)
        self.audio = audio

    async def look(self) -> None:
        """Read what the server says of itself."""
        websocket = await self.connect()
        try:
            await websocket.close()
        finally:
            websocket.transport.abort()

    def line(self, session: RemoteSession) -> SessionLine:
        """A way to the server that is yet to be opened."""
        return SessionLine(self, session)

    async def connect(self) -> ClientConnection:
        """A WebSocket whose server has said hello.

        Raises:
            EngineUnreachable: There is none, or what answers is not ours.
        """
        websocket = await open_websocket(
            self.address, ping_seconds=_PING_SECONDS, pong_seconds=_PONG_SECONDS
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._greeted(await receive_control(websocket))
        except BaseException as error:
            websocket.transport.abort()
            if isinstance(error, ConnectionClosed | OSError):
                raise unreachable(self.address, error) from error
            if isinstance(error, BadMessage):
                raise self._stranger(str(error)) from error
            raise
        return websocket

    def _greeted(self, message: ServerMessage) -> None:
        if isinstance(message, Error):
            raise EngineUnreachable(f"{self.address.url}: {message.message}")
        if not isinstance(message, Hello):
            raise self._stranger(f"it begins with {message.type!r}")
        if message.version != VERSION:
            raise self._stranger(f"it speaks version {message.version}, and this is {VERSION}")
        self.voices = tuple(message.voices)
        self.draining = message.draining
        self.max_sessions = message.max_sessions
        self.answered(message.sessions)

    def _stranger(self, reason: str) -> Rejected:
        return Rejected(f"{self.address.url}: what answers there is not one of ours: {reason}")
