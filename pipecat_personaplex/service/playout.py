"""Measures how much of the agent's audio waits to be played."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipecat.frames.frames import ControlFrame, Frame, SpeechOutputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

MAX_BACKLOG_SECONDS = 0.12
"""Audio waiting to be played beyond which silence is dropped."""


@dataclass
class PlayoutMark(ControlFrame):
    """Follows a frame of audio; passes the output transport once that audio has been played.

    Parameters:
        position: Seconds of audio sent so far, the frame before this mark included.
    """

    interruptible: bool = field(default=False, init=False)

    position: float


class PlayoutMeter(FrameProcessor):
    """Measures how much audio the transport has yet to play; place it after ``transport.output()``.

    A transport pushes audio downstream once it has been played. Audio that the service has sent
    and that has not passed the meter is therefore still waiting. Give the meter to
    ``PersonaPlexLLMService`` as well: the service then drops silent model frames while the backlog
    is long, which removes the delay that a stall has left.

    Args:
        **kwargs: Passed to ``FrameProcessor``.

    Example::

        playout = PlayoutMeter()
        agent = PersonaPlexLLMService(engine, playout=playout)
        pipeline = Pipeline([transport.input(), agent, transport.output(), playout])
    """

    def __init__(self, **kwargs: Any):
        super().__init__(enable_direct_mode=True, **kwargs)  # quick: needs no queue of its own
        self._sent = 0.0
        self._played = 0.0

    @property
    def backlog(self) -> float:
        """Seconds of audio sent and not yet played."""
        return max(0.0, self._sent - self._played)

    @property
    def long(self) -> bool:
        """Whether the backlog is so long that silence should be dropped."""
        return self.backlog > MAX_BACKLOG_SECONDS

    def sent(self, seconds: float) -> PlayoutMark:
        """Count audio that is sent to the transport.

        Returns:
            The mark to push right after that audio.
        """
        self._sent += seconds
        return PlayoutMark(self._sent)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Count played audio. Marks end here; every other frame is pushed on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, PlayoutMark):
            # Corrects the count if the transport has lost audio before this mark.
            self._played = frame.position
            return
        if isinstance(frame, SpeechOutputAudioRawFrame):
            self._played += frame.num_frames / frame.sample_rate
        await self.push_frame(frame, direction)
