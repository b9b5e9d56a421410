"""A call that advances only with its input: push audio, get the frames that it completes."""

from __future__ import annotations

import queue

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import EngineLike, SessionFrame

_TIMEOUT_SECONDS = 120.0


class SteppedCall:
    """A session whose output is returned by the call that pushes its input.

    Args:
        engine: A started engine.
        persona: Voice and role.
        sampling: How tokens are sampled.

    Raises:
        PersonaPlexError: As ``open_session``.

    Example::

        call = SteppedCall(engine, Persona("NATF2"))
        for frame in call.push(pcm):  # float32 mono 24 kHz
            play(frame.pcm)
        call.close()
    """

    def __init__(
        self, engine: EngineLike, persona: Persona, sampling: SamplingParams | None = None
    ):
        self._buffer = FrameBuffer()
        self._events: queue.SimpleQueue[SessionFrame | PersonaPlexError | None] = (
            queue.SimpleQueue()
        )
        self._session = engine.open_session(
            persona, sampling, on_frame=self._events.put, on_end=self._events.put
        )

    def push(self, pcm: Pcm) -> list[SessionFrame]:
        """Push audio, and wait for the frames that it completes.

        Args:
            pcm: float32 [n] mono 24 kHz, any length.

        Raises:
            SessionFailed: The session has ended, or no frame comes for two minutes.
        """
        frames = []
        for part in self._buffer.push(pcm):
            self._session.push(part)
            try:
                event = self._events.get(timeout=_TIMEOUT_SECONDS)
            except queue.Empty:
                raise SessionFailed(
                    f"no frame was computed in {_TIMEOUT_SECONDS:.0f} s; is the engine started?"
                ) from None
            if not isinstance(event, SessionFrame):
                raise event or SessionFailed("the session was closed")
            frames.append(event)
        return frames

    def close(self) -> None:
        """End the session."""
        self._session.close()
