"""A whole conversation with a recorded caller, as fast as it goes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.session import Session, checked_pcm

# Frames given ahead of the answers: they keep the model thread busy.
_AHEAD = 2


@dataclass(frozen=True)
class Conversation:
    """A whole conversation, as ``Engine.converse`` returns it.

    Attributes:
        pcm: The agent's audio, float32, as long as the caller's.
        frames: Every frame, in order; the last one may reach past the caller's end.
    """

    pcm: Pcm
    frames: Sequence[SessionFrame]


class Opener(Protocol):
    """``Engine.open_session`` for a persona."""

    def __call__(
        self,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_end: Callable[[PersonaPlexError | None], object],
    ) -> Session:
        """Open a session that answers through these."""
        ...


def converse(
    open_session: Opener,
    pcm: Pcm,
    max_queued_frames: int,
    on_frame: Callable[[SessionFrame], object] | None = None,
) -> Conversation:
    """Hold the conversation; arguments and errors as in ``Engine.converse``.

    Args:
        open_session: Opens the session.
        pcm: The caller.
        max_queued_frames: More than a session may have waiting are never given.
        on_frame: Called with each frame.
    """
    pcm = checked_pcm(pcm)
    count = -(-len(pcm) // FRAME_SAMPLES)
    padded = np.zeros((count, FRAME_SAMPLES), dtype=np.float32)
    padded.reshape(-1)[: len(pcm)] = pcm
    answers: queue.SimpleQueue[SessionFrame | PersonaPlexError | None] = queue.SimpleQueue()
    session = open_session(on_frame=answers.put, on_end=answers.put)
    frames: list[SessionFrame] = []
    try:
        ahead = min(_AHEAD, max_queued_frames)
        for index in range(count + ahead):
            if index >= ahead:
                answer = answers.get()
                if not isinstance(answer, SessionFrame):
                    raise answer or SessionFailed("the session was closed")
                frames.append(answer)
                if on_frame is not None:
                    on_frame(answer)
            if index < count:
                session.push(padded[index])
    finally:
        session.close()
    sound = [frame.pcm for frame in frames] or [np.zeros(0, dtype=np.float32)]
    return Conversation(np.concatenate(sound)[: len(pcm)], frames)
