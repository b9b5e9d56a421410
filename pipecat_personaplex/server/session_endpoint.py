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
from pipecat_personaplex.interface import CallHistory, SessionFrame
from pipecat_personaplex.protocol.call_history import HistoryReader
from pipecat_personaplex.protocol.session_frames import ClientFrame
from pipecat_personaplex.protocol.session_messages import (
    AskStats,
    Close,
    Closed,
    Draining,
    Hello,
    Hold,
    Hush,
    Instruction,
    Open,
    Opened,
    Ready,
    Release,
    Resume,
    Resumed,
    Say,
    ServerMessage,
    Stats,
    Update,
    UpdatePrompt,
    error_message,
    parse_client,
)
from pipecat_personaplex.server.auth import ApiClient
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
                if isinstance(first, bytes):
                    error = BadMessage("open or resume comes before audio")
                    await self._refuse(error, UNSUPPORTED)
                    return
                request, history = await self._receive_request(first)
            resumable, resume = self._open_or_find(request, history)
        except TimeoutError:
            await self._refuse(LimitReached("neither open nor resume came in time"))
            return
        except PersonaPlexError as error:
            await self._refuse(error)
            return
        except Disconnected:
            raise
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
            features=sorted(self._state.engine.features),
        )

    async def _receive_request(self, first: str) -> tuple[Open | Resume, CallHistory | None]:
        """Parse a client's first message, and receive the history that follows it, if any.

        Raises:
            BadMessage: A message is invalid.
            Disconnected: The client has disconnected.
        """
        match parse_client(first):
            case Open() as message:
                reader = HistoryReader(message)
                while not reader.complete:
                    reader.accept(await self._socket.receive())
                return message, reader.history
            case Resume() as message:
                return message, None
            case message:
                raise BadMessage(f"open or resume comes first, not {message.type}")

    def _open_or_find(
        self, request: Open | Resume, history: CallHistory | None
    ) -> tuple[ResumableSession, Resume | None]:
        """Return the session that a client opens or resumes."""
        if isinstance(request, Open):
            return self._registry.open(self._client, request, history), None
        resumable = self._registry.find(self._client, request.session)
        resumable.check_next(request.next_frame)
        return resumable, request

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
                    await self._send_reports(resumable)
                case async_session.Progress():
                    await self._send_reports(resumable)
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
        await self._send(
            Resumed(
                next_frame=resumable.next_frame,
                ready=resumable.session.ready,
                instructions=resumable.executor.received,
            )
        )
        if self._state.admission.draining:
            await self._send(Draining(seconds=self._state.admission.seconds_left))
        for frame in missed:
            await self._socket.send(frame)
        for report in resumable.reports_since(next_frame):
            await self._socket.send(report)

    async def _send_reports(self, resumable: ResumableSession) -> None:
        # All are stored before the first is sent: this connection may break meanwhile.
        messages = [resumable.pack_report(report) for report in resumable.executor.reports()]
        for message in messages:
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
            BadMessage: The message is invalid, or is not allowed in a running session.
        """
        try:
            match parse_client(text):
                case (
                    Say() | Hush() | Hold() | Release() | UpdatePrompt() | Update()
                ) as instruction:
                    await self._execute(resumable, instruction)
                case AskStats():
                    await self._send(_stats(resumable))
                case Close():
                    resumable.session.end(None, reason="closed by the client")
                case message:
                    raise BadMessage(
                        f"the session is already open; a message of type {message.type} is not "
                        "allowed now"
                    )
        except BadMessage:
            raise
        except UserError as error:  # An invalid sampling parameter: the session goes on.
            resumable.executor.received += 1
            self._record_refusal(resumable, error)
            await self._send(error_message(error, fatal=False))

    async def _execute(self, resumable: ResumableSession, instruction: Instruction) -> None:
        try:
            resumable.executor.execute(instruction)
        except BadMessage:
            raise
        except UserError as error:  # The session is unchanged and goes on.
            self._record_refusal(resumable, error)
            report = resumable.executor.refuse(instruction, error)
            packed = None if report is None else resumable.pack_report(report)
            if not isinstance(instruction, UpdatePrompt):  # its report contains the error
                await self._send(error_message(error, fatal=False))
            if packed is not None:
                await self._socket.send(packed)
        except EngineError:  # The session has ended; its Ended event is in the queue.
            pass

    def _record_refusal(self, resumable: ResumableSession, error: UserError) -> None:
        self._state.count_invalid_message(error)
        self._state.refusals.record(error, client=self._client.label, session=resumable.session.id)


def _stats(resumable: ResumableSession) -> Stats:
    stats = resumable.session.engine_session.stats()
    return Stats(
        frames=stats.frames,
        late_frames=stats.late_frames,
        dropped_frames=stats.dropped_frames,
        queued_frames=stats.queued_frames,
    )
