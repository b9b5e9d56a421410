"""``/v1/session``: a conversation over one WebSocket, or several one after another.

``protocol/PROTOCOL.md`` describes the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from loguru import logger
from starlette.websockets import WebSocket

from pipecat_personaplex import async_session
from pipecat_personaplex.errors import (
    BadMessage,
    EngineError,
    LimitReached,
    PersonaPlexError,
    SessionLost,
    UserError,
)
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.session_frames import ClientFrame
from pipecat_personaplex.protocol.session_messages import (
    AskStats,
    Close,
    Closed,
    Draining,
    Hello,
    Open,
    Opened,
    Ready,
    Resume,
    Resumed,
    Say,
    ServerMessage,
    Stats,
    Update,
    error_message,
    parse_client,
)
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.limits import check_length
from pipecat_personaplex.server.sessions import ResumableSession, SessionRegistry
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.server.websocket import (
    TAKEN_OVER,
    UNSUPPORTED,
    ClientSocket,
    ClosedByClient,
    Disconnected,
    close_code,
    report_defect,
    run_duplex,
)


def session_endpoint(state: ServerState) -> Callable[[WebSocket], Awaitable[None]]:
    """Return the endpoint of a server; ``app`` has checked the WebSockets that it gets."""
    registry = SessionRegistry(state)

    async def endpoint(websocket: WebSocket) -> None:
        with suppress(Disconnected):
            await _Connection(websocket, state, registry).serve()

    return endpoint


class _Connection:
    """A client's connection, from hello to close."""

    def __init__(self, websocket: WebSocket, state: ServerState, registry: SessionRegistry):
        self._client: ApiClient = websocket.state.client
        self._state = state
        self._registry = registry
        self._socket = ClientSocket(websocket)

    async def serve(self) -> None:
        """Serve the connection; errors become an error message and a close code.

        Raises:
            Disconnected: The client has disconnected.
        """
        await self._socket.accept()
        await self._send(self._hello())
        try:
            async with asyncio.timeout(self._state.config.hello_seconds):
                first = await self._socket.receive()
        except TimeoutError:
            await self._refuse(LimitReached("neither open nor resume came in time"))
            return
        if isinstance(first, bytes):
            await self._refuse(BadMessage("open or resume comes before audio"), UNSUPPORTED)
            return
        try:
            resumable, resume = self._open_or_find(first)
        except PersonaPlexError as error:
            await self._refuse(error)
            return
        except Exception as error:
            await self._conclude(report_defect(error, logger.bind(client=self._client.label)))
            return
        await self._serve_session(resumable, resume)

    def _hello(self) -> Hello:
        stats = self._state.engine.stats()
        return Hello(
            model=self._state.model,
            voices=self._state.engine.voices,
            sessions=stats.sessions,
            max_sessions=stats.max_sessions,
            draining=self._state.admission.draining,
        )

    def _open_or_find(self, first: str) -> tuple[ResumableSession, Resume | None]:
        """Return the session that a client's first message opens or resumes."""
        match parse_client(first):
            case Open() as message:
                return self._registry.open(self._client, message), None
            case Resume() as message:
                resumable = self._registry.find(self._client, message.session)
                resumable.check_next(message.next_frame)
                return resumable, message
            case message:
                raise BadMessage(f"open or resume comes first, not {message.type}")

    async def _refuse(self, error: PersonaPlexError, code: int | None = None) -> None:
        """End a connection that has no session."""
        self._state.count_invalid_message(error)
        self._state.refusals.record(error, client=self._client.label)
        await self._conclude(error, code)

    async def _serve_session(self, resumable: ResumableSession, resume: Resume | None) -> None:
        try:
            if not await resumable.run(lambda: self._converse(resumable, resume)):
                await self._socket.close(TAKEN_OVER)
        except Exception as error:
            failure = report_defect(error, resumable.log)
            resumable.session.end(failure)
            await self._conclude(failure)
        finally:
            self._registry.disconnected(resumable)

    async def _converse(self, resumable: ResumableSession, resume: Resume | None) -> None:
        await run_duplex(self._listen(resumable), self._speak(resumable, resume))

    # To the client.

    async def _send(self, message: ServerMessage) -> None:
        await self._socket.send(message.model_dump_json())

    async def _speak(self, resumable: ResumableSession, resume: Resume | None) -> None:
        session = resumable.session
        ready_sent = False
        if resume is None:
            await self._send(
                Opened(
                    session=resumable.secret,
                    id=session.id,
                    resume_seconds=self._state.config.resume_seconds,
                )
            )
        else:
            ready_sent = session.ready  # ``resumed`` says so.
            await self._resume(resumable, resume.next_frame)
        while True:
            match await session.next():
                case SessionFrame() as frame:
                    await self._socket.send(resumable.pack(frame))
                case async_session.Ready() if not ready_sent:
                    await self._send(Ready())
                case async_session.Draining(seconds):
                    await self._send(Draining(seconds=seconds))
                case async_session.Ended(error=error):
                    await self._conclude(error)
                    return

    async def _resume(self, resumable: ResumableSession, next_frame: int) -> None:
        """Send what the client missed while it was disconnected."""
        try:
            missed = resumable.sent_since(next_frame)
        except SessionLost as error:
            resumable.session.end(error, drop_events=True)
            return
        self._state.metrics.resumes.inc()
        resumable.log.info("session resumed; frames sent again: {}", len(missed))
        await self._send(Resumed(next_frame=resumable.next_frame, ready=resumable.session.ready))
        if self._state.admission.draining:
            await self._send(Draining(seconds=self._state.admission.seconds_left))
        for message in missed:
            await self._socket.send(message)

    async def _conclude(self, error: PersonaPlexError | None, code: int | None = None) -> None:
        """Send the last message and close the connection."""
        await self._send(Closed() if error is None else error_message(error, fatal=True))
        await self._socket.close(close_code(error) if code is None else code)

    # From the client.

    async def _listen(self, resumable: ResumableSession) -> None:
        try:
            while True:
                message = await self._socket.receive()
                if isinstance(message, bytes):
                    resumable.accept(ClientFrame.unpack(message))
                else:
                    await self._handle_control(resumable, message)
        except ClosedByClient:  # The client will not resume.
            resumable.session.end(None, reason="the client closed the connection")
            raise
        except PersonaPlexError as error:
            self._state.count_invalid_message(error)
            resumable.session.end(error)

    async def _handle_control(self, resumable: ResumableSession, text: str) -> None:
        """Do what a control message requests.

        Raises:
            BadMessage: The message is invalid, or does not belong into a running session.
        """
        engine_session = resumable.session.engine_session
        try:
            match parse_client(text):
                case Say(text=words):
                    check_length("words to say", words, self._state.config)
                    engine_session.say(words)
                case Update(sampling=sampling):
                    engine_session.update(sampling)
                case AskStats():
                    await self._send(_stats(resumable))
                case Close():
                    resumable.session.end(None, reason="closed by the client")
                case message:
                    raise BadMessage(f"the session is open already; {message.type} is out of place")
        except BadMessage:
            raise
        except UserError as error:  # The session is unchanged and goes on.
            self._state.count_invalid_message(error)
            self._state.refusals.record(
                error, client=self._client.label, session=resumable.session.id
            )
            await self._send(error_message(error, fatal=False))
        except EngineError:  # The session has ended; its Ended event is in the queue.
            pass


def _stats(resumable: ResumableSession) -> Stats:
    stats = resumable.session.engine_session.stats()
    return Stats(
        frames=stats.frames,
        late_frames=stats.late_frames,
        dropped_frames=stats.dropped_frames,
        queued_frames=stats.queued_frames,
    )
