"""A session at ``personaplex serve``: ``/v1/session`` (protocol/PROTOCOL.md)."""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from loguru import logger
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from pipecat_personaplex.audio import QueuedFrame
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import (
    BadMessage,
    EngineDraining,
    EngineUnreachable,
    InvalidAudio,
    PersonaPlexError,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.audio import open_codec
from pipecat_personaplex.protocol.call_history import pack_history
from pipecat_personaplex.protocol.session_messages import (
    AskStats,
    AudioFormat,
    Close,
    Error,
    Open,
    Opened,
    Resume,
    Resumed,
    ServerMessage,
    rebuild_error,
)
from pipecat_personaplex.remote.connection import (
    PermanentlyUnreachable,
    as_unreachable,
    receive_control,
)
from pipecat_personaplex.remote.delivery import ReceiveWindow, SendWindow
from pipecat_personaplex.remote.server import TakenOver, never
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.tasks import run_until_first_ends, wait_until_cancelled

if TYPE_CHECKING:
    from pipecat_personaplex.remote.native import NativeServer

# The server grants a slot at once; the prompt may take until _READY_SECONDS.
_OPEN_SECONDS = 5.0
_READY_SECONDS = 60.0
_CLOSE_SECONDS = 1.0
# A server cannot make the client retry for longer than this.
_MAX_RESUME_SECONDS = 60.0
# If a frame is unconfirmed for this long, request the server's counters: it may have dropped it.
_STATS_SECONDS = 1.0
# If a frame is unconfirmed for this long, the session fails.
_CONFIRM_SECONDS = 10.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 1.0
_TAKEN_OVER = 4001
# A server whose machine refuses connections this often has ended, and its sessions with it.
_MAX_REFUSALS = 2
# Close codes about the content of messages: a new connection would end in the same way.
_FINAL_CLOSE_CODES = (1002, 1003, 1007, 1008, 1009, 1010)


def open_message(
    session: RemoteSession, audio: AudioFormat, history: CallHistory | None = None
) -> str:
    """The message that requests a session, as JSON without the fields that older servers lack.

    Args:
        session: The caller's side.
        audio: The encoding of audio on the connection.
        history: The call to continue, whose parts follow the message; None for a new one.
    """
    persona = session.persona
    message = Open(
        voice=persona.voice,
        text_prompt=persona.text_prompt,
        sampling=session.sampling,
        audio=audio,
        history=None if history is None else len(history.tokens),
        history_audio=None if history is None else len(history.caller) // FRAME_SAMPLES,
    )
    return message.model_dump_json(exclude_none=True)


class NativeChannel:
    """One session at one server, over as many connections as needed.

    Args:
        server: The session's server.
        session: The caller's side.

    Attributes:
        draining: Set once the server reports that it is stopping.
        can_move: Returns whether another server can take the call.
        server_id: The session's public id at this server.
    """

    def __init__(self, server: NativeServer, session: RemoteSession):
        self.session = session
        self.draining = asyncio.Event()
        self.can_move = never
        self._server = server
        codec = open_codec(server.audio)
        self._send_window = SendWindow(session, codec.encode)
        self._receive_window = ReceiveWindow(
            session, self._send_window, codec.decode, server.address.url, self._mark_draining
        )
        self._awake = asyncio.Event()
        self._websocket: ClientConnection | None = None
        self._broken = False
        # What follows is set by open().
        self._secret = ""
        self._opened = 0.0
        self._resume_seconds = 0.0
        self.server_id = ""

    def _mark_draining(self) -> None:
        self._server.mark_draining()
        self.draining.set()

    def unconfirmed(self) -> list[QueuedFrame]:
        """The input frames that the server has not confirmed, in order."""
        return self._send_window.unconfirmed()

    def wake(self) -> None:
        """Notify the channel that the session has something to send."""
        self._awake.set()

    async def open(self) -> None:
        """Connect and request a slot.

        Raises:
            PersonaPlexError: The server refuses, or does not respond.
        """
        url = self._server.address.url
        websocket = self._websocket = await self._server.connect()
        if self._server.draining:
            raise EngineDraining(f"{url}: the server is stopping")
        record = self.session.record
        history = None if record.empty else record.snapshot()
        message = open_message(self.session, self._server.audio, history)
        parts = () if history is None else tuple(pack_history(history))
        opened = await self._request(websocket, message, *parts)
        if not isinstance(opened, Opened):
            raise self._violation(f"{opened.type!r} came where 'opened' was expected")
        self._opened = time.monotonic()
        self._secret = opened.session
        self._resume_seconds = min(max(0.0, opened.resume_seconds), _MAX_RESUME_SECONDS)
        # The id is empty from an older server; a call that moves here keeps its first one.
        if opened.id and not self.session.ready:
            self.session.adopt_id(opened.id)
        self.server_id = opened.id
        logger.bind(session=self.session.id).debug("{}: the session has a slot", url)

    async def run(self) -> None:
        """Send and receive until cancelled; a connection that breaks is replaced.

        Raises:
            PersonaPlexError: The error that ended the session.
        """
        assert self._websocket is not None, "open() comes first"
        while True:
            try:
                await self._use(self._websocket)
            except (ConnectionClosed, OSError) as error:
                await self._resume(self._retry_reason(error))

    async def close(self) -> None:
        """Have the server free the slot, and disconnect; never raises."""
        with suppress(ConnectionClosed, OSError, PersonaPlexError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if self._resume_seconds and self.session.error is None and self._disconnected:
                    # Without this, the server would hold the slot for resume_seconds.
                    await self._resume_once()
                if self._websocket is not None:
                    await self._websocket.send(Close().model_dump_json())
                while self._websocket is not None:  # until ConnectionClosed
                    await self._websocket.recv()
        if self._websocket is not None:
            self._websocket.transport.abort()

    @property
    def _disconnected(self) -> bool:
        return self._broken or (
            self._websocket is not None and self._websocket.state is State.CLOSED
        )

    # One connection.

    async def _request(
        self, websocket: ClientConnection, message: str, *parts: bytes
    ) -> ServerMessage:
        """Send the first message of a connection and return the server's response.

        Args:
            websocket: The new connection.
            message: The message as JSON.
            parts: Binary messages that follow it.

        Raises:
            PersonaPlexError: The server responds with an error, or not at all.
        """
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await websocket.send(message)
                for part in parts:
                    await websocket.send(part)
                response = await receive_control(websocket)
        except (ConnectionClosed, OSError) as error:
            raise as_unreachable(self._server.address, error, _OPEN_SECONDS) from error
        except BadMessage as error:
            raise self._violation(str(error)) from error
        if isinstance(response, Error):
            raise rebuild_error(response)
        return response

    async def _use(self, websocket: ClientConnection) -> None:
        """Send and receive on one connection until it breaks.

        Raises:
            ConnectionClosed: The connection broke.
            PersonaPlexError: The session is over.
        """
        self._awake.set()
        await run_until_first_ends(
            self._receive(websocket), self._send(websocket), self._supervise(websocket)
        )

    async def _receive(self, websocket: ClientConnection) -> None:
        while True:
            self._handle(await websocket.recv())

    async def _send(self, websocket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._awake.wait()
                self._awake.clear()
                while (message := self._send_window.next()) is not None:
                    await websocket.send(message)
        await wait_until_cancelled()

    async def _supervise(self, websocket: ClientConnection) -> None:
        """Request the server's counters while a frame stays unconfirmed.

        Raises:
            SessionFailed: The prompt takes too long.
            SessionLost: A frame takes too long, or the prompt of a call that has moved here.
        """
        url, connected = self._server.address.url, time.monotonic()
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(_STATS_SECONDS)
                self._awake.set()  # a prompt update may be due, also while no frames arrive
                now = time.monotonic()
                ready_at = self._receive_window.ready_at
                if ready_at == math.inf and now - self._opened > _READY_SECONDS:
                    failure = SessionLost if self.session.ready else SessionFailed
                    raise failure(f"{url} has not computed the prompt within {_READY_SECONDS:g} s")
                # Count from the start of this connection: the time without one is not its fault.
                # A call that moves here sends frames before its prompt is computed.
                since = max(connected, ready_at, self._send_window.oldest_sent)
                if now - since > _CONFIRM_SECONDS:
                    raise SessionLost(f"{url} has not returned a frame for {_CONFIRM_SECONDS:g} s")
                if now - self._send_window.oldest_sent > _STATS_SECONDS:
                    await websocket.send(AskStats().model_dump_json())
        await wait_until_cancelled()

    def _handle(self, message: str | bytes) -> None:
        try:
            fatal = self._receive_window.receive(message)
        except (BadMessage, InvalidAudio) as error:
            raise self._violation(str(error)) from error
        if fatal is not None:
            raise rebuild_error(fatal)
        self._awake.set()  # a confirmed frame makes room for the next

    def _violation(self, reason: str) -> SessionFailed:
        return SessionFailed(f"{self._server.address.url} does not follow the protocol: {reason}")

    # From one connection to the next.

    def _retry_reason(self, error: ConnectionClosed | OSError) -> str:
        """Why the connection broke, for a break that a new connection may repair.

        Raises:
            SessionFailed: A new connection would not help.
        """
        url = self._server.address.url
        if isinstance(error, ConnectionClosed):
            received = error.rcvd.code if error.rcvd else None
            if received == _TAKEN_OVER:
                self._resume_seconds = 0.0  # close() must not take the session back
                raise TakenOver(f"{url}: another client has resumed the session") from error
            # A close frame sent in response to the server's repeats the server's code.
            sent = error.sent.code if error.sent and not error.rcvd_then_sent else None
            if received in _FINAL_CLOSE_CODES:
                raise SessionFailed(f"{url} closed the connection: {error.rcvd}") from error
            if sent in _FINAL_CLOSE_CODES:
                raise self._violation(str(error.sent)) from error
        return str(error) or type(error).__name__

    async def _resume(self, reason: str) -> None:
        """Continue the session over a new connection; retry until ``resume_seconds`` have passed.

        Raises:
            SessionLost: The server does not know the session, or is not reachable in time.
            PersonaPlexError: The server refuses for another reason.
        """
        url = self._server.address.url
        if not self._resume_seconds:
            raise SessionLost(
                f"{url}: the connection broke, and this server does not support resuming: {reason}"
            )
        log = logger.bind(session=self.session.id)
        log.warning("{}: the connection broke; resuming the session: {}", url, reason)
        self._broken = True
        refusals = 0
        pause = _MIN_BACKOFF_SECONDS
        try:
            async with asyncio.timeout(self._resume_seconds):
                while True:
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                    pause = min(2 * pause, _MAX_BACKOFF_SECONDS)
                    try:
                        ready = await self._resume_once()
                    except EngineUnreachable as error:
                        reason = str(error)
                        refused = isinstance(error.__cause__, ConnectionRefusedError)
                        refusals = refusals + 1 if refused else 0
                        ended = refusals >= _MAX_REFUSALS
                        permanent = isinstance(error, PermanentlyUnreachable)
                        if (ended or permanent) and self.can_move():
                            raise SessionLost(f"{url}: the server has ended: {reason}") from error
                    else:
                        log.info("{}: the session has resumed", url)
                        if ready:
                            self._receive_window.mark_ready()
                        return
        except TimeoutError:
            raise SessionLost(
                f"{url}: the connection broke and could not be resumed within "
                f"{self._resume_seconds:g} s: {reason}"
            ) from None

    async def _resume_once(self) -> bool:
        """Resume over one new connection; return whether the server has computed the prompt."""
        websocket = self._websocket = await self._server.connect()
        try:
            message = Resume(session=self._secret, next_frame=self._receive_window.next_frame)
            resumed = await self._request(websocket, message.model_dump_json())
            if not isinstance(resumed, Resumed):
                raise self._violation(f"{resumed.type!r} came where 'resumed' was expected")
            self._send_window.resume_from(resumed.next_frame, resumed.instructions)
        except BaseException as error:
            websocket.transport.abort()
            if isinstance(error, BadMessage):
                raise self._violation(str(error)) from error
            raise
        self._broken = False
        return resumed.ready
