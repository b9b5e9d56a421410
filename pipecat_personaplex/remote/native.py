"""The client of ``personaplex serve``: its state, and sessions there (protocol/PROTOCOL.md)."""

from __future__ import annotations

import asyncio
from typing import get_args

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.errors import BadMessage, EngineUnreachable
from pipecat_personaplex.interface import Feature
from pipecat_personaplex.protocol.session_messages import (
    BASIC_FEATURES,
    VERSION,
    AudioFormat,
    Error,
    Hello,
    ServerMessage,
)
from pipecat_personaplex.remote.address import ServerAddress
from pipecat_personaplex.remote.connection import (
    CONNECT_SECONDS,
    PermanentlyUnreachable,
    as_unreachable,
    open_websocket,
    receive_control,
)
from pipecat_personaplex.remote.native_channel import NativeChannel
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.remote.session import RemoteSession

_PING_SECONDS = 2.0
_PONG_SECONDS = 4.0


class NativeServer(Server):
    """A server started by ``personaplex serve``.

    Args:
        address: How to reach it.
        audio: The encoding of audio on the connection.
    """

    def __init__(self, address: ServerAddress, audio: AudioFormat):
        super().__init__(address)
        self.audio = audio

    async def poll(self) -> None:
        """Connect, read the server's hello, and disconnect.

        Raises:
            EngineUnreachable: The connection failed, or the server sends no valid hello.
        """
        websocket = await self.connect()
        try:
            await websocket.close()
        finally:
            websocket.transport.abort()

    def new_channel(self, session: RemoteSession) -> NativeChannel:
        """Create a channel for a session; the caller opens it."""
        return NativeChannel(self, session)

    async def connect(self) -> ClientConnection:
        """Connect and read the server's hello.

        Raises:
            EngineUnreachable: The connection failed, or the server sends no valid hello.
        """
        websocket = await open_websocket(
            self.address, ping_seconds=_PING_SECONDS, pong_seconds=_PONG_SECONDS
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._handle_hello(await receive_control(websocket))
        except BaseException as error:
            websocket.transport.abort()
            if isinstance(error, ConnectionClosed | OSError):
                raise as_unreachable(self.address, error) from error
            if isinstance(error, BadMessage):
                raise self._not_personaplex(str(error)) from error
            raise
        return websocket

    def _handle_hello(self, message: ServerMessage) -> None:
        if isinstance(message, Error):
            raise EngineUnreachable(f"{self.address.url}: {message.message}")
        if not isinstance(message, Hello):
            raise self._not_personaplex(f"its first message is {message.type!r}, not 'hello'")
        if message.version != VERSION:
            raise self._not_personaplex(
                f"it uses protocol version {message.version}; this client uses {VERSION}"
            )
        self.voices = tuple(message.voices)
        listed = BASIC_FEATURES if message.features is None else message.features
        self.features = frozenset(each for each in get_args(Feature) if each in listed)
        self.progress = message.features is not None
        self.draining = message.draining
        self.max_sessions = message.max_sessions
        self.mark_reachable(message.sessions)

    def _not_personaplex(self, reason: str) -> PermanentlyUnreachable:
        return PermanentlyUnreachable(f"{self.address.url}: not a PersonaPlex server: {reason}")
