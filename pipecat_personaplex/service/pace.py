"""Audio of a caller that arrives faster than real time is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_personaplex.asgi.token_bucket import TokenBucket

# Clocks of sound cards differ from ours by less than 1 %.
_SPEED = 1.05
_SECONDS_AT_ONCE = 4.0
"""After a stall of the network, its audio arrives at once."""


class PaceLimit:
    """Lets a stream of audio pass as long as it is not faster than real time.

    Args:
        clock: Returns monotonic seconds.

    Attributes:
        dropped_seconds: Audio that did not pass so far.

    Example::

        limit = PaceLimit()
        if limit.allows(0.02):
            push(chunk)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._bucket = TokenBucket(_SPEED, _SECONDS_AT_ONCE, clock())
        self.dropped_seconds = 0.0

    def allows(self, seconds: float) -> bool:
        """Whether a chunk of this duration may pass; counts it if not."""
        if self._bucket.take(self._clock(), seconds):
            return True
        self.dropped_seconds += seconds
        return False


class PacedInput(FrameProcessor):
    """Passes a caller's audio on as long as it is not faster than real time.

    Example::

        Pipeline([transport.input(), PacedInput(), stt, ...])
    """

    def __init__(self) -> None:
        super().__init__()
        self._limit = PaceLimit()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Drop audio beyond the pace; pass all else on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            first = not self._limit.dropped_seconds
            if not self._limit.allows(frame.num_frames / frame.sample_rate):
                if first:
                    logger.warning("a caller sends audio faster than real time; it is dropped")
                return
        await self.push_frame(frame, direction)
