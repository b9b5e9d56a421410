"""Runs a whole conversation with a recorded user, as fast as the machine computes it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipecat_personaplex.audio import Pcm, checked_pcm
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.session import Session

# Frames in flight, so that the model thread always has the next one.
_FRAMES_AHEAD = 2


Actions = Mapping[int, Callable[[Session], object]]
"""What to do during a conversation, by frame index: for example, to say something.

An action is called in the calling thread when all earlier frames have been computed, and before
the frame of its index is. It therefore takes effect at the same frame in every run.
"""


@dataclass(frozen=True)
class Conversation:
    """A whole conversation, as ``Engine.converse`` returns it.

    Attributes:
        pcm: The agent's audio, float32 mono 24 kHz, as long as the user's.
        frames: Every frame, in order. The last one may extend past the end of ``pcm``.
    """

    pcm: Pcm
    frames: Sequence[SessionFrame]


class OpenSession(Protocol):
    """``Engine.open_session`` with the persona and the sampling bound."""

    def __call__(
        self,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_end: Callable[[PersonaPlexError | None], object],
    ) -> Session:
        """Open a session that reports through these callbacks."""
        ...


def converse(
    open_session: OpenSession,
    pcm: Pcm,
    max_queued_frames: int,
    on_frame: Callable[[SessionFrame], object] | None = None,
    actions: Actions | None = None,
) -> Conversation:
    """Run the conversation; see ``Engine.converse`` for its result and errors.

    Args:
        open_session: Opens the session.
        pcm: The user's audio, float32 mono 24 kHz.
        max_queued_frames: Input frames that may wait in the session; never exceeded.
        on_frame: Called with each frame in the calling thread.
        actions: See ``Actions``.
    """
    actions = actions or {}
    padded = frames_of(pcm)
    count = len(padded)
    # What the model thread reports: frames, and last the end (an error or None).
    events: queue.SimpleQueue[SessionFrame | PersonaPlexError | None] = queue.SimpleQueue()
    session = open_session(on_frame=events.put, on_end=events.put)
    frames: list[SessionFrame] = []
    try:
        ahead = min(_FRAMES_AHEAD, max_queued_frames)
        for index in range(count + 1):
            action = actions.get(index)
            # Before an action and at the end, wait until no frame is in flight.
            in_flight = 0 if action or index == count else ahead - 1
            while len(frames) < index - in_flight:
                event = events.get()
                if not isinstance(event, SessionFrame):
                    raise event or SessionFailed("the session was closed")
                frames.append(event)
                if on_frame is not None:
                    on_frame(event)
            if action is not None:
                session.wait_ready()
                action(session)
            if index < count:
                session.push(padded[index])
    finally:
        session.close()
    return conversation_of(frames, len(pcm))


def frames_of(pcm: Pcm) -> Pcm:
    """Cut a recording into frames [n, 1920]; the last one is padded with silence."""
    pcm = checked_pcm(pcm)
    padded = np.zeros((-(-len(pcm) // FRAME_SAMPLES), FRAME_SAMPLES), dtype=np.float32)
    padded.reshape(-1)[: len(pcm)] = pcm
    return padded


def conversation_of(frames: Sequence[SessionFrame], samples: int) -> Conversation:
    """Join the frames of a conversation of this many samples."""
    audio = [frame.pcm for frame in frames] or [np.zeros(0, dtype=np.float32)]
    return Conversation(np.concatenate(audio)[:samples], frames)
