"""Sessions of ``/v1/session``, which outlive their connections."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import islice

from pipecat_personaplex.async_session import AsyncSession
from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import BadMessage, EngineError, SessionLost
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.audio import FrameCodec, open_codec
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame
from pipecat_personaplex.protocol.session_messages import Open
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.limits import Limits, open_admitted_session
from pipecat_personaplex.server.state import ServerState

_ID_BYTES = 32


class ResumableSession:
    """A session, the frames that may have to be sent again, and who talks to its client.

    Args:
        guest: Whose it is.
        bridge: The engine's session, open.
        limits: Of the session.
        codec: Its audio format.
        config: The server's limits.

    Attributes:
        id: A secret: the guest who has it may take over.
        owner: The guest's name.
        bridge: As above.
        next_frame: Sequence number that the client's next frame must have.
    """

    def __init__(
        self,
        guest: ApiClient,
        bridge: AsyncSession,
        limits: Limits,
        codec: FrameCodec,
        config: ServerConfig,
    ):
        self.id = secrets.token_urlsafe(_ID_BYTES)
        # By name: the same guest is another object once the keys were read again.
        self.owner = guest.name
        self.bridge = bridge
        self.next_frame = 0
        self._limits = limits
        self._codec = codec
        # Bounded: what a client may miss is what it had not read when its connection broke, and
        # what is answered until that is seen. Who misses more has lost the session.
        kept = config.max_unsent_frames + math.ceil(config.resume_seconds / FRAME_SECONDS)
        self._sent: deque[bytes] = deque(maxlen=kept)
        self._answered = 0
        self._handover = asyncio.Lock()
        self._talk: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    # From the client.

    def accept(self, frame: ClientFrame) -> None:
        """Give the engine a frame.

        Raises:
            BadMessage: It is not the next one: each frame is heard once, in order.
            LimitReached: It comes too fast.
            InvalidAudio: It does not decode.
        """
        if frame.sequence != self.next_frame:
            raise BadMessage(f"frame {self.next_frame} comes next, not {frame.sequence}")
        self._limits.check_pace(FRAME_SECONDS)
        pcm = self._codec.decode(frame.audio)
        self.next_frame += 1
        self._limits.heard()
        with suppress(EngineError):  # the session is over; its end is on the way
            self.bridge.session.push(pcm)

    # To the client.

    def pack(self, frame: SessionFrame) -> bytes:
        """A new frame as a message, which is kept."""
        message = ServerFrame.of(frame, self._codec.encode(frame.pcm)).pack()
        self._sent.append(message)
        self._answered = frame.index + 1
        return message

    def check_next(self, next_frame: int) -> None:
        """Refuse a client that wants a frame which it cannot know of.

        Raises:
            BadMessage: That is so.
        """
        if next_frame > self._answered:
            raise BadMessage(
                f"next_frame is {next_frame}, and {self._answered} frames have been sent"
            )

    def sent_since(self, next_frame: int) -> Sequence[bytes]:
        """Frames that were sent, from one on, as they were sent.

        Raises:
            SessionLost: The first is not kept any more.
        """
        forgotten = self._answered - len(self._sent)
        if next_frame < forgotten:
            raise SessionLost(f"frames before {forgotten} are not kept any more")
        return list(islice(self._sent, next_frame - forgotten, None))

    # One conversation at a time.

    async def talk(self, conversation: Callable[[], Coroutine[object, object, None]]) -> bool:
        """Hold a conversation, in place of the one that may be going on.

        Args:
            conversation: Called when no other is left; what it raises is raised here.

        Returns:
            Whether it came to its own end; False if another took over.
        """
        async with self._handover:  # of several that want to, each takes over from the one before
            if self._talk is not None and not self._talk.done():
                self._talk.cancel()
                await asyncio.wait({self._talk})
            self._limits.returned()
            talk = self._talk = asyncio.create_task(conversation())
        try:
            await asyncio.wait({talk})
        finally:
            talk.cancel()  # where it was this task that was cancelled
        if talk.cancelled():
            return False
        talk.result()
        return True

    @property
    def talking(self) -> bool:
        """Whether there is a conversation, or one is about to take over."""
        talk = self._talk
        going_on = talk is not None and not talk.done() and not talk.cancelling()
        return going_on or self._handover.locked()

    def wait_for_client(self, seconds: float, expired: Callable[[], object]) -> None:
        """Have something called unless there is a conversation by then."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._limits.left()
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(seconds, lambda: self.talking or expired())


class SessionRegistry:
    """The sessions that may be resumed, by their secret.

    Args:
        state: The server.
    """

    def __init__(self, state: ServerState):
        self._state = state
        self._sessions: dict[str, ResumableSession] = {}

    def open(self, guest: ApiClient, message: Open) -> ResumableSession:
        """A new session.

        Raises:
            PersonaPlexError: As ``open_admitted_session``, or there is no Opus on this machine.
        """
        codec = open_codec(message.audio)
        persona = Persona(message.voice, message.text_prompt)
        bridge, limits = open_admitted_session(self._state, guest, persona, message.sampling)
        try:
            hosted = ResumableSession(guest, bridge, limits, codec, self._state.config)
        except BaseException:
            bridge.end(None)
            raise
        self._sessions[hosted.id] = hosted
        return hosted

    def find(self, guest: ApiClient, secret: str) -> ResumableSession:
        """A session to resume.

        Raises:
            SessionLost: The guest has none with this secret.
        """
        hosted = self._sessions.get(secret)
        if hosted is None or hosted.owner != guest.name:
            raise SessionLost("the server does not know this session, or not any more")
        return hosted

    def leave(self, hosted: ResumableSession) -> None:
        """A connection of a session's is over: the session waits for another.

        Unless its client has closed it; one that failed waits too, to say why.
        """
        if hosted.talking:
            return
        if hosted.bridge.closed:
            self._forget(hosted)
        else:
            seconds = self._state.config.resume_seconds
            hosted.wait_for_client(seconds, lambda: self._forget(hosted))

    def _forget(self, hosted: ResumableSession) -> None:
        self._sessions.pop(hosted.id, None)
        hosted.bridge.end(None)
