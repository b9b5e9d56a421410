"""Sessions of ``/v1/session``: they can continue on another connection."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import islice

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import BadMessage, EngineError, SessionLost
from pipecat_personaplex.interface import CallHistory, SessionFrame
from pipecat_personaplex.protocol.audio import FrameCodec, open_codec
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame
from pipecat_personaplex.protocol.session_messages import SESSION_PATH, Open
from pipecat_personaplex.server.admitted_session import AdmittedSession, open_admitted_session
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.instructions import InstructionExecutor, Report
from pipecat_personaplex.server.state import ServerState

_SECRET_BYTES = 32
# Reports that are stored to be sent again; more than the speeches that a client may have waiting.
_MAX_STORED_REPORTS = 128


class ResumableSession:
    """A session with the frames that may have to be sent again, and its current connection.

    Args:
        client: The client that opened it.
        admitted: The open session, its limits and its log.
        codec: Audio format of its messages.
        executor: Executes the client's instructions.
        config: The server's limits.

    Attributes:
        secret: Gives its holder, if it has the owner's key, the right to resume the session.
        owner: Name of the client.
        session: The engine's session as events.
        log: Writes lines with the session's public id and its client.
        executor: Executes the client's instructions.
        next_frame: Sequence number that the client's next frame must have.
    """

    def __init__(
        self,
        client: ApiClient,
        admitted: AdmittedSession,
        codec: FrameCodec,
        executor: InstructionExecutor,
        config: ServerConfig,
    ):
        self.secret = secrets.token_urlsafe(_SECRET_BYTES)
        # Compare names: reading the key file again creates new ApiClient objects.
        self.owner = client.name
        self.session = admitted.session
        self.log = admitted.log
        self.executor = executor
        self.next_frame = 0
        self._limits = admitted.limits
        self._codec = codec
        # Bounded. A client may have missed the frames that it had not read when its connection
        # broke, and those that were computed until the server noticed.
        max_stored = config.max_unsent_frames + math.ceil(config.resume_seconds / FRAME_SECONDS)
        self._stored: deque[bytes] = deque(maxlen=max_stored)
        self._frames_sent = 0
        # The latest report of each speech and prompt update, with the frames sent before it; the
        # oldest report first. Bounded by _MAX_STORED_REPORTS.
        self._reports: dict[tuple[str, int], tuple[int, str]] = {}
        self._handover = asyncio.Lock()
        self._conversation: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    # From the client.

    def accept(self, frame: ClientFrame) -> None:
        """Push a frame to the engine.

        Raises:
            BadMessage: The frame is not the next one; the engine gets each frame once, in order.
            LimitReached: Audio arrives too fast.
            InvalidAudio: The audio cannot be decoded.
        """
        if frame.sequence != self.next_frame:
            raise BadMessage(f"frame {self.next_frame} comes next, not {frame.sequence}")
        self._limits.consume(FRAME_SECONDS)
        pcm = self._codec.decode(frame.audio)
        self.next_frame += 1
        self._limits.touch()
        with suppress(EngineError):  # The session has ended; its Ended event is in the queue.
            self.session.engine_session.push(pcm)

    # To the client.

    def pack(self, frame: SessionFrame) -> bytes:
        """Encode a new frame as a message, and store it in case it must be sent again."""
        message = ServerFrame.of(frame, self._codec.encode(frame.pcm)).pack()
        self._stored.append(message)
        self._frames_sent = frame.index + 1
        return message

    def pack_report(self, report: Report) -> str:
        """Encode a report as a message, and store it in case it must be sent again."""
        message = report.model_dump_json()
        key = report.type, report.id
        self._reports.pop(key, None)
        self._reports[key] = self._frames_sent, message
        if len(self._reports) > _MAX_STORED_REPORTS:
            del self._reports[next(iter(self._reports))]
        return message

    def check_next(self, next_frame: int) -> None:
        """Check the frame number from which a client wants to resume.

        Raises:
            BadMessage: The server has not sent the frames before it.
        """
        if next_frame > self._frames_sent:
            raise BadMessage(
                f"next_frame is {next_frame}, and {self._frames_sent} frames have been sent"
            )

    def sent_since(self, next_frame: int) -> Sequence[bytes]:
        """Return the stored frames from a frame on, as messages.

        Raises:
            SessionLost: The frame is not stored any more.
        """
        dropped = self._frames_sent - len(self._stored)
        if next_frame < dropped:
            raise SessionLost(f"frames before {dropped} are not stored any more")
        return list(islice(self._stored, next_frame - dropped, None))

    def reports_since(self, next_frame: int) -> Sequence[str]:
        """Return the stored reports that a client may have missed, as messages.

        A report states the whole truth about its speech or prompt: it may arrive twice.
        """
        return [message for sent, message in self._reports.values() if sent >= next_frame]

    # One connection at a time.

    async def run(self, conversation: Callable[[], Coroutine[object, object, None]]) -> bool:
        """Run the conversation of a connection; cancel the one of the connection before it.

        Args:
            conversation: Called when the previous conversation has stopped; its exceptions are
                raised here.

        Returns:
            True if the conversation finished; False if another connection took over.
        """
        async with self._handover:  # Of several new connections, each takes over from the last.
            if self._conversation is not None and not self._conversation.done():
                self.log.info("a new connection takes over the session")
                self._conversation.cancel()
                await asyncio.wait({self._conversation})
            self._limits.client_connected()
            task = self._conversation = asyncio.create_task(conversation())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # Has an effect only if this coroutine was cancelled while it waited.
        if task.cancelled():
            return False
        task.result()
        return True

    @property
    def connected(self) -> bool:
        """Whether a connection uses the session, or is about to take it over."""
        task = self._conversation
        running = task is not None and not task.done() and not task.cancelling()
        return running or self._handover.locked()

    def wait_for_client(self, seconds: float, on_expiry: Callable[[], object]) -> None:
        """Call ``on_expiry`` after some seconds if no connection uses the session then."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._limits.client_disconnected()
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(seconds, lambda: self.connected or on_expiry())


class SessionRegistry:
    """The sessions that can be resumed, by their secret.

    Args:
        state: The server.
    """

    def __init__(self, state: ServerState):
        self._state = state
        self._sessions: dict[str, ResumableSession] = {}

    def open(
        self, client: ApiClient, message: Open, history: CallHistory | None = None
    ) -> ResumableSession:
        """Open a session.

        Args:
            client: Who opens it.
            message: What the client requests.
            history: A call to continue.

        Raises:
            PersonaPlexError: As ``open_admitted_session``, or Opus is not installed.
        """
        codec = open_codec(message.audio)
        persona = Persona(message.voice, message.text_prompt)
        admitted = open_admitted_session(
            self._state, client, SESSION_PATH, persona, message.sampling, history
        )
        try:
            state = self._state
            executor = InstructionExecutor(admitted.session, state.config, state.metrics)
            resumable = ResumableSession(client, admitted, codec, executor, state.config)
        except BaseException:
            admitted.session.end(None, reason="the server failed to open it")
            raise
        self._sessions[resumable.secret] = resumable
        return resumable

    def find(self, client: ApiClient, secret: str) -> ResumableSession:
        """Return the session that a client wants to resume.

        Raises:
            SessionLost: The client has no session with this secret.
        """
        resumable = self._sessions.get(secret)
        if resumable is None or resumable.owner != client.name:
            raise SessionLost("the server does not know this session, or not any more")
        return resumable

    def disconnected(self, resumable: ResumableSession) -> None:
        """Let a session wait for its client after a connection has ended.

        A session that was closed on purpose is forgotten at once. A session that failed waits,
        because its client does not know the error yet.
        """
        if resumable.connected:
            return
        if resumable.session.closed:
            self._forget(resumable)
            return
        seconds = self._state.config.resume_seconds
        if not resumable.session.ended:
            resumable.log.info("disconnected; the session waits {:g} s for its client", seconds)
        resumable.wait_for_client(seconds, lambda: self._forget(resumable))

    def _forget(self, resumable: ResumableSession) -> None:
        self._sessions.pop(resumable.secret, None)
        resumable.session.end(None, reason="the client did not come back")
