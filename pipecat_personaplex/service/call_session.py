"""One session of a call, and its states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.interface import SessionLike


class SessionState(Enum):
    """What a session of a call is for; see ``CallSession``."""

    PENDING = "pending"
    ACTIVE = "active"
    DRAINING = "draining"


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """A new persona for a running session; equal to no other request, also for the same persona."""

    persona: Persona


@dataclass(eq=False)
class CallSession:
    """One session of a call.

    A session that supports it changes its persona while it runs. Otherwise the call opens another
    session; it has at most one in each state::

                 Call.open                Ready             the next session is ready
        (opened) ---------> PENDING ---------------> ACTIVE -------------------------> DRAINING
                               |                        |                                  |
                               | replaced by another    | failed,              no frame in flight,
                               | Call.open, or failed   | call closed          or the new session's
                               v                        v                      first frame arrived
                            (closed)                (closed)                           (closed)

    - PENDING: the prompt is being computed. The session gets no audio.
    - ACTIVE: the session gets the caller's audio and speaks the given texts.
    - DRAINING: the session gets no more audio, and returns the frames that are in flight.

    Attributes:
        session: The engine's session.
        persona: Voice and role that are in effect.
        sampling: How the session samples tokens now.
        max_in_flight_frames: The most frames that may be in flight.
        state: See above.
        prompt_request: The latest new persona, if it is not in effect yet.
        pushed: Input frames given to the session.
        received: Output frames that came back.
    """

    session: SessionLike
    persona: Persona
    sampling: SamplingParams
    max_in_flight_frames: int
    state: SessionState = SessionState.PENDING
    prompt_request: PromptRequest | None = None
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
        if sampling != self.sampling:
            self.session.update(sampling)
            self.sampling = sampling
