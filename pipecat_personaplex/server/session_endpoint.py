"""``/v1/session``: a conversation over one WebSocket, or over several; see PROTOCOL.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from starlette.websockets import WebSocket

from pipecat_personaplex import async_session as bridge
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
    SESSION_PATH,
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
    our_failure,
    run_duplex,
)


def session_endpoint(state: ServerState) -> Callable[[WebSocket], Awaitable[None]]:
    """The endpoint of a server: takes WebSockets whose guest has been let in."""
    table = SessionRegistry(state)

    async def endpoint(websocket: WebSocket) -> None:
        with suppress(Disconnected):
            await _Connection(websocket, state, table).serve()

    return endpoint


class _Connection:
    """A client's connection, from hello to close."""

    def __init__(self, websocket: WebSocket, state: ServerState, table: SessionRegistry):
        self._guest = websocket.state.guest
        self._state = state
        self._table = table
        self._wire = ClientSocket(websocket)

    async def serve(self) -> None:
        """Serve it; what goes wrong becomes an error message and a close code.

        Raises:
            Disconnected: The client is.
        """
        await self._wire.accept()
        await self._say(self._hello())
        try:
            async with asyncio.timeout(self._state.config.hello_seconds):
                first = await self._wire.receive()
        except TimeoutError:
            await self._refuse(LimitReached("neither open nor resume came in time"))
            return
        if isinstance(first, bytes):
            await self._refuse(BadMessage("open or resume comes before audio"), UNSUPPORTED)
            return
        try:
            hosted, resume = self._host(first)
        except PersonaPlexError as error:
            await self._refuse(error)
            return
        except Exception as error:
            await self._refuse(our_failure(SESSION_PATH, error))
            return
        await self._serve_session(hosted, resume)

    def _hello(self) -> Hello:
        stats = self._state.engine.stats()
        return Hello(
            model=self._state.model,
            voices=self._state.engine.voices,
            sessions=stats.sessions,
            max_sessions=stats.max_sessions,
            draining=self._state.door.draining,
        )

    def _host(self, first: str) -> tuple[ResumableSession, Resume | None]:
        """The session that a client's first message is about."""
        match parse_client(first):
            case Open() as message:
                hosted = self._table.open(self._guest, message)
                self._state.metrics.sessions_opened.labels(SESSION_PATH).inc()
                return hosted, None
            case Resume() as message:
                hosted = self._table.find(self._guest, message.session)
                hosted.check_next(message.next_frame)
                return hosted, message
            case message:
                raise BadMessage(f"open or resume comes first, not {message.type}")

    async def _refuse(self, error: PersonaPlexError, code: int | None = None) -> None:
        self._state.count_refused(error)
        await self._say(error_message(error, fatal=True))
        await self._wire.close(close_code(error) if code is None else code)

    async def _serve_session(self, hosted: ResumableSession, resume: Resume | None) -> None:
        try:
            if not await hosted.talk(lambda: self._converse(hosted, resume)):
                await self._wire.close(TAKEN_OVER)
        except Exception as error:
            failure = our_failure(SESSION_PATH, error)
            hosted.bridge.end(failure)
            await self._refuse(failure)
        finally:
            self._table.leave(hosted)

    async def _converse(self, hosted: ResumableSession, resume: Resume | None) -> None:
        await run_duplex(self._listen(hosted), self._speak(hosted, resume))

    # To the client.

    async def _say(self, message: ServerMessage) -> None:
        await self._wire.send(message.model_dump_json())

    async def _speak(self, hosted: ResumableSession, resume: Resume | None) -> None:
        told_ready = False
        if resume is None:
            seconds = self._state.config.resume_seconds
            await self._say(Opened(session=hosted.id, resume_seconds=seconds))
        else:
            told_ready = hosted.bridge.ready
            await self._take_up(hosted, resume.next_frame)
        while True:
            match await hosted.bridge.next():
                case SessionFrame() as frame:
                    await self._wire.send(hosted.pack(frame))
                case bridge.Ready() if not told_ready:
                    await self._say(Ready())
                case bridge.Draining(seconds):
                    await self._say(Draining(seconds=seconds))
                case bridge.Ended(error):
                    await self._conclude(error)
                    return

    async def _take_up(self, hosted: ResumableSession, next_frame: int) -> None:
        """Go on where the last connection broke."""
        try:
            missed: Sequence[bytes] = hosted.sent_since(next_frame)
        except SessionLost as error:
            hosted.bridge.end(error, at_once=True)
            return
        self._state.metrics.resumes.inc()
        await self._say(Resumed(next_frame=hosted.next_frame, ready=hosted.bridge.ready))
        if self._state.door.draining:
            await self._say(Draining(seconds=self._state.door.seconds_left))
        for message in missed:
            await self._wire.send(message)

    async def _conclude(self, error: PersonaPlexError | None) -> None:
        await self._say(Closed() if error is None else error_message(error, fatal=True))
        await self._wire.close(close_code(error))

    # From the client.

    async def _listen(self, hosted: ResumableSession) -> None:
        try:
            while True:
                message = await self._wire.receive()
                if isinstance(message, bytes):
                    hosted.accept(ClientFrame.unpack(message))
                else:
                    await self._obey(hosted, message)
        except ClosedByClient:  # nobody will resume
            hosted.bridge.end(None)
            raise
        except PersonaPlexError as error:
            self._state.count_refused(error)
            hosted.bridge.end(error)

    async def _obey(self, hosted: ResumableSession, text: str) -> None:
        """Do what a control message asks for.

        Raises:
            BadMessage: It is none, or not one for a running session.
        """
        try:
            match parse_client(text):
                case Say(text=words):
                    check_length("words to say", words, self._state.config)
                    hosted.bridge.session.say(words)
                case Update(sampling=sampling):
                    hosted.bridge.session.update(sampling)
                case AskStats():
                    await self._say(_stats(hosted))
                case Close():
                    hosted.bridge.end(None)
                case message:
                    raise BadMessage(f"the session is open already; {message.type} is out of place")
        except BadMessage:
            raise
        except UserError as error:  # the session is as it was
            self._state.count_refused(error)
            await self._say(error_message(error, fatal=False))
        except EngineError:  # the session is over; its end is on the way
            pass


def _stats(hosted: ResumableSession) -> Stats:
    stats = hosted.bridge.session.stats()
    return Stats(
        frames=stats.frames,
        late_frames=stats.late_frames,
        dropped_frames=stats.dropped_frames,
        queued_frames=stats.queued_frames,
    )
