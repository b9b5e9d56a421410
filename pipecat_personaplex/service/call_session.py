"""One session of a call, and its states."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.interface import SessionLike
from pipecat_personaplex.service.forced_speech import ForcedSpeech


class SessionState(Enum):
    """What a session of a call is for; see ``CallSession``."""

    PENDING = "pending"
    ACTIVE = "active"
    DRAINING = "draining"


@dataclass(eq=False)
class CallSession:
    """One session of a call.

    A call has at most one session in each state::

                 Call.open                Ready             the next session is ready
        (opened) ---------> PENDING ---------------> ACTIVE -------------------------> DRAINING
                               |                        |                                  |
                               | replaced by another    | failed,              no frame in flight,
                               | Call.open, or failed   | call closed          or the new session's
                               v                        v                      first frame arrived
                            (closed)                (closed)                           (closed)

    - PENDING: the prompt is being computed. The session gets no audio.
    - ACTIVE: the session gets the caller's audio and speaks forced texts.
    - DRAINING: the session gets no more audio, and returns the frames that are in flight.

    Attributes:
        session: The engine's session.
        persona: Voice and role.
        sampling: How the session samples tokens now.
        max_in_flight_frames: The most frames that may be in flight.
        state: See above.
        speech: The forced texts that this session has still to speak.
        pushed: Input frames given to the session.
        received: Output frames that came back.
    """

    session: SessionLike
    persona: Persona
    sampling: SamplingParams
    max_in_flight_frames: int
    state: SessionState = SessionState.PENDING
    speech: ForcedSpeech = field(default_factory=ForcedSpeech)
    pushed: int = 0
    received: int = 0

    @property
    def in_flight_frames(self) -> int:
        """Input frames that were pushed and whose output frame has not come back.

        A frame that the session dropped never comes back, so it does not count.
        """
        return max(0, self.pushed - self.received - self.session.dropped_frames)

    def push(self, frame: Pcm) -> None:
        """Give the session one input frame, float32 [1920]."""
        self.session.push(frame)
        self.pushed += 1

    def update(self, sampling: SamplingParams) -> None:
        """Change how the session samples tokens."""
        self.session.update(sampling)
        self.sampling = sampling
