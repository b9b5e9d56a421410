"""A caller's side of a session that another machine computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import ConfigError, LimitReached, PersonaPlexError
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.session_messages import MAX_MESSAGE_BYTES, Say
from pipecat_personaplex.session import Session

_MAX_UNSAID = 64


class RemoteSession(Session):
    """A conversation in progress; made by ``RemoteEngine.open_session``.

    As an engine's own ``Session``, with callbacks on the thread of the remote engine. Audio that
    cannot be sent, because the prompt is not in, the server is behind or the connection broken,
    waits in the session's queue; past its length the oldest frame is dropped and counted.
    """

    def __init__(
        self,
        persona: Persona,
        sampling: SamplingParams,
        *,
        on_ready: Callable[[], object] | None,
        on_frame: Callable[[SessionFrame], object],
        on_end: Callable[[PersonaPlexError | None], object] | None,
        wake: Callable[[], None],
        max_queued_frames: int,
        mute: str = "",
    ):
        super().__init__(
            persona,
            sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=wake,
            tokenize=lambda text: [],  # the server's task
            max_queued_frames=max_queued_frames,
        )
        # Why words cannot be said here; empty where they can.
        self.mute = mute
        # Bounded by _MAX_UNSAID: past it nothing is taken, and the caller is told.
        self._unsaid: deque[str] = deque()
        self._dropped_by_server = 0

    def say(self, text: str) -> None:
        """Have the agent say these words next, after any it has still to say.

        Returns at once, so that words which are too many for the server are only logged.

        Args:
            text: A sentence or more, in plain words.

        Raises:
            ConfigError: This server cannot be told what to say.
            LimitReached: Too much waits to be sent, or does not fit into one message.
            SessionFailed: The session is over.
        """
        self._require_open()
        if self.mute:
            raise ConfigError(self.mute)
        require_fitting("words to say", Say(text=text).model_dump_json())
        with self._lock:
            if len(self._unsaid) >= _MAX_UNSAID:
                raise LimitReached(f"{_MAX_UNSAID} texts wait to be said already")
            self._unsaid.append(text)
        self._wake()

    def update(self, sampling: SamplingParams) -> None:
        """Draw with these parameters from the next frame on.

        Raises:
            ConfigError: This server cannot change them.
            SessionFailed: The session is over.
        """
        if self.mute:
            raise ConfigError(self.mute)
        super().update(sampling)
        self._wake()

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far, here and by the server; takes no lock."""
        return self._input.dropped + self._dropped_by_server

    # What follows is for the remote engine's thread.

    @property
    def ready(self) -> bool:
        """Whether frames are being answered."""
        return self._ready.is_set()

    def take_unsaid(self) -> str | None:
        """The oldest words that have not been sent."""
        with self._lock:
            return self._unsaid.popleft() if self._unsaid else None

    def count_dropped(self, frames: int) -> None:
        """Count frames that the server dropped."""
        with self._lock:
            self._dropped_by_server += frames

    def receive(self, frame: SessionFrame, seconds: float) -> None:
        """Hand a frame to the caller, so long after what it answers.

        Raises:
            SessionFailed: The caller's callback raised.
        """
        with self._lock:
            self._frames += 1
            self._late += seconds > FRAME_SECONDS
        if not self.closed:
            self._call_back("on_frame", self._on_frame, frame)


def require_fitting(what: str, message: str) -> None:
    """Refuse what the server would close the connection for.

    Raises:
        LimitReached: The message is too long.
    """
    size = len(message.encode())
    if size > MAX_MESSAGE_BYTES:
        raise LimitReached(
            f"the {what} make a message of {size} bytes; a server takes {MAX_MESSAGE_BYTES}"
        )
