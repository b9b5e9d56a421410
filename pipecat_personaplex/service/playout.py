"""How much of the agent's audio is still waiting to be played."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipecat.frames.frames import ControlFrame, Frame, SpeechOutputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

MAX_BACKLOG_SECONDS = 0.12
"""Audio waiting to be played beyond which silence is dropped."""


@dataclass
class PlayoutMark(ControlFrame):
    """Travels behind a frame of audio, and so passes the output once that has been played.

    Parameters:
        position: Seconds of audio sent so far, the frame before included.
    """

    interruptible: bool = field(default=False, init=False)

    position: float


class PlayoutMeter(FrameProcessor):
    """Measures, right after ``transport.output()``, what the transport has yet to play.

    A transport pushes audio on once it has been played, so what the service sent and what has
    come by here differ by the delay between the model and the caller's ear. Give the meter to
    ``PersonaPlexLLMService`` as well: it then drops silent model frames while the backlog is
    long, which takes back the delay that a stall has left.

    Args:
        **kwargs: For ``FrameProcessor``.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._sent = 0.0
        self._played = 0.0

    @property
    def backlog(self) -> float:
        """Seconds of audio sent and not yet played."""
        return max(0.0, self._sent - self._played)

    @property
    def long(self) -> bool:
        """Whether so much waits that silence is better dropped."""
        return self.backlog > MAX_BACKLOG_SECONDS

    def sent(self, seconds: float) -> PlayoutMark:
        """Count audio on its way to the transport; the mark is to be pushed behind it."""
        self._sent += seconds
        return PlayoutMark(self._sent)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Count what was played, and push every frame on but the marks."""
        await super().process_frame(frame, direction)
        if isinstance(frame, PlayoutMark):
            # The truth, even where a transport has lost audio on the way.
            self._played = frame.position
            return
        if isinstance(frame, SpeechOutputAudioRawFrame):
            self._played += frame.num_frames / frame.sample_rate
        await self.push_frame(frame, direction)
