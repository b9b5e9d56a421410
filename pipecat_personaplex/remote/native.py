"""A session over ``/v1/session``: open, converse, resume; see server/PROTOCOL.md."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

from loguru import logger
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from pipecat_personaplex.errors import (
    BadMessage,
    EngineDraining,
    EngineUnreachable,
    InvalidAudio,
    PersonaPlexError,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.protocol.audio import open_codec
from pipecat_personaplex.protocol.session_messages import (
    VERSION,
    AskStats,
    AudioFormat,
    Close,
    Error,
    Hello,
    Open,
    Opened,
    Resume,
    Resumed,
    ServerMessage,
    rebuild_error,
)
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.connection import (
    CONNECT_SECONDS,
    PermanentlyUnreachable,
    open_websocket,
    receive_control,
    unreachable,
)
from pipecat_personaplex.remote.delivery import ReceiveWindow, SendWindow
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.tasks import first_to_end, for_ever

# The engine answers at once that it has a slot; the prompt comes later.
_OPEN_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0
_MAX_RESUME_SECONDS = 60.0
# A frame that waits for longer has been dropped, or soon will be answered.
_ASK_SECONDS = 1.0
_READY_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_BACKOFF_SECONDS = (0.1, 1.0)
_TAKEN_OVER = 4001
# Closed for what was in the messages: the next connection would fare no better.
_FINAL_CODES = (1002, 1003, 1007, 1008, 1009, 1010)


class NativeChannel:
    """One session, over as many connections as it takes.

    Args:
        server: Where the session is.
        session: Its caller's side.
    """

    def __init__(self, server: NativeServer, session: RemoteSession):
        self.session = session
        self._server = server
        codec = open_codec(server.audio)
        self._outbox = SendWindow(session, codec.encode)
        url, drains = server.address.url, server.drains
        self._inbox = ReceiveWindow(session, self._outbox, codec.decode, url, drains)
        self._awake = asyncio.Event()
        self._websocket: ClientConnection | None = None
        self._broken = False
        self._secret = ""
        self._opened = 0.0
        self._resume_seconds = 0.0

    def wake(self) -> None:
        """The session has something to send."""
        self._awake.set()

    async def open(self) -> None:
        """Get a slot.

        Raises:
            PersonaPlexError: The server refuses, or does not answer.
        """
        websocket = self._websocket = await self._server.connect()
        if self._server.draining:
            raise EngineDraining(f"{self._server.address.url}: the server is stopping")
        opened = await self._ask(websocket, opening(self.session, self._server.audio))
        if not isinstance(opened, Opened):
            raise self._violation(f"{opened.type!r} came where 'opened' was due")
        self._opened = time.monotonic()
        self._secret = opened.session
        self._resume_seconds = min(max(0.0, opened.resume_seconds), _MAX_RESUME_SECONDS)

    async def run(self) -> None:
        """Converse until cancelled; a connection that breaks is replaced.

        Raises:
            PersonaPlexError: What ended the session.
        """
        assert self._websocket is not None, "open comes first"
        while True:
            try:
                await self._converse(self._websocket)
            except (ConnectionClosed, OSError) as error:
                await self._resume(self._reason(error))

    async def leave(self) -> None:
        """Have the server free the slot."""
        with suppress(ConnectionClosed, OSError, PersonaPlexError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self._resume_seconds and self.session.error is None and self._cut_off:
                    # Else the slot would be kept for whoever might resume.
                    await self._resume_once()
                if self._websocket is not None:
                    await self._websocket.send(Close().model_dump_json())
                while self._websocket is not None:  # frames, closed, and the end
                    await self._websocket.recv()
        if self._websocket is not None:
            self._websocket.transport.abort()

    @property
    def _cut_off(self) -> bool:
        return self._broken or (
            self._websocket is not None and self._websocket.state is State.CLOSED
        )

    # One connection.

    async def _ask(self, websocket: ClientConnection, message: Open | Resume) -> ServerMessage:
        """What the server answers before anything else.

        Raises:
            PersonaPlexError: An error, or nothing.
        """
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await websocket.send(message.model_dump_json())
                answer = await receive_control(websocket)
        except (ConnectionClosed, OSError) as error:
            raise unreachable(self._server.address, error, _OPEN_SECONDS) from error
        except BadMessage as error:
            raise self._violation(str(error)) from error
        if isinstance(answer, Error):
            raise rebuild_error(answer)
        return answer

    async def _converse(self, websocket: ClientConnection) -> None:
        self._awake.set()
        await first_to_end(
            self._receive(websocket), self._send(websocket), self._oversee(websocket)
        )

    async def _receive(self, websocket: ClientConnection) -> None:
        while True:
            self._take(await websocket.recv())

    async def _send(self, websocket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._awake.wait()
                self._awake.clear()
                while (message := self._outbox.next()) is not None:
                    await websocket.send(message)
        await for_ever()

    async def _oversee(self, websocket: ClientConnection) -> None:
        """Have the server count, where a frame stays without an answer for long.

        Raises:
            SessionFailed: It stays so for too long, or the prompt does.
        """
        url, connected = self._server.address.url, time.monotonic()
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(_ASK_SECONDS)
                now = time.monotonic()
                if not self.session.ready and now - self._opened > _READY_SECONDS:
                    raise SessionFailed(
                        f"{url} has not taken the prompt within {_READY_SECONDS:g} s"
                    )
                if now - max(connected, self._outbox.oldest) > _ANSWER_SECONDS:
                    raise SessionFailed(f"{url} has not answered for {_ANSWER_SECONDS:g} s")
                if now - self._outbox.oldest > _ASK_SECONDS:
                    await websocket.send(AskStats().model_dump_json())
        await for_ever()

    def _take(self, message: str | bytes) -> None:
        try:
            fatal = self._inbox.take(message)
        except (BadMessage, InvalidAudio) as error:
            raise self._violation(str(error)) from error
        if fatal is not None:
            raise rebuild_error(fatal)
        self._awake.set()  # an answer makes room for the next frame

    def _violation(self, reason: str) -> SessionFailed:
        return SessionFailed(f"{self._server.address.url} does not follow the protocol: {reason}")

    # From one connection to the next.

    def _reason(self, error: ConnectionClosed | OSError) -> str:
        """Why the connection broke.

        Raises:
            SessionFailed: Another connection would not help.
        """
        url = self._server.address.url
        if isinstance(error, ConnectionClosed):
            received = error.rcvd.code if error.rcvd else None
            if received == _TAKEN_OVER:
                raise SessionLost(f"{url}: another client has resumed the session") from error
            sent = error.sent.code if error.sent and not error.rcvd_then_sent else None
            if received in _FINAL_CODES:
                raise SessionFailed(f"{url} closed the connection: {error.rcvd}") from error
            if sent in _FINAL_CODES:
                raise self._violation(str(error.sent)) from error
        return str(error) or type(error).__name__

    async def _resume(self, reason: str) -> None:
        """Go on over another connection.

        Raises:
            SessionLost: The server does not know the session, or cannot be reached in time.
            PersonaPlexError: Whatever else it says.
        """
        url = self._server.address.url
        if not self._resume_seconds:
            raise SessionLost(
                f"{url}: the connection broke, and this server keeps no session: {reason}"
            )
        logger.warning("{}: the connection broke, and the session resumes: {}", url, reason)
        self._broken = True
        pause = _BACKOFF_SECONDS[0]
        try:
            async with asyncio.timeout(self._resume_seconds):
                while True:
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                    pause = min(2 * pause, _BACKOFF_SECONDS[1])
                    try:
                        return await self._resume_once()
                    except EngineUnreachable as error:
                        reason = str(error)
        except TimeoutError:
            raise SessionLost(
                f"{url}: the connection broke and could not be resumed within "
                f"{self._resume_seconds:g} s: {reason}"
            ) from None

    async def _resume_once(self) -> None:
        websocket = self._websocket = await self._server.connect()
        try:
            message = Resume(session=self._secret, next_frame=self._inbox.next_frame)
            resumed = await self._ask(websocket, message)
            if not isinstance(resumed, Resumed):
                raise self._violation(f"{resumed.type!r} came where 'resumed' was due")
            self._outbox.resume(resumed.next_frame)
        except BaseException as error:
            websocket.transport.abort()
            if isinstance(error, BadMessage):
                raise self._violation(str(error)) from error
            raise
        self._broken = False
        if resumed.ready:
            self._inbox.ready()


def opening(session: RemoteSession, audio: AudioFormat) -> Open:
    """The message that asks for a session."""
    persona = session.persona
    return Open(
        voice=persona.voice, text_prompt=persona.text_prompt, sampling=session.sampling, audio=audio
    )


_PING_SECONDS = 2.0
_PONG_SECONDS = 4.0


class NativeServer(Server):
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

    def line(self, session: RemoteSession) -> NativeChannel:
        """A way to the server that is yet to be opened."""
        return NativeChannel(self, session)

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

    def _stranger(self, reason: str) -> PermanentlyUnreachable:
        return PermanentlyUnreachable(
            f"{self.address.url}: what answers there is not one of ours: {reason}"
        )
