"""Audio of a caller that arrives faster than real time is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from loguru import logger
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_personaplex.asgi.token_bucket import TokenBucket

# Clocks of sound cards differ from ours by less than 1 %.
_SPEED = 1.05
_MAX_PARTICIPANTS = 64
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
    """Passes audio on as long as it does not arrive faster than real time.

    Place it right after the transport's input, so that what it drops fills no queue.

    Args:
        clock: Returns monotonic seconds.
        **kwargs: Passed to ``FrameProcessor``.

    Attributes:
        dropped_seconds: Audio that was dropped so far.

    Example::

        Pipeline([transport.input(), PacedInput(), stt, ...])
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, **kwargs: Any):
        super().__init__(enable_direct_mode=True, **kwargs)  # quick: needs no queue of its own
        self._clock = clock
        # One for each participant: each of them speaks in real time.
        self._limits: dict[str | None, PaceLimit] = {}
        self.dropped_seconds = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Push every frame on, except audio that is not allowed."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, InputAudioRawFrame) or self.allows(frame):
            await self.push_frame(frame, direction)

    def allows(self, frame: InputAudioRawFrame) -> bool:
        """Whether this audio may pass; counts it if not."""
        participant = getattr(frame, "user_id", None)
        limit = self._limits.get(participant)
        if limit is None:
            if len(self._limits) >= _MAX_PARTICIPANTS:
                self._limits.pop(next(iter(self._limits)))
            limit = self._limits[participant] = PaceLimit(self._clock)
        seconds = frame.num_frames / frame.sample_rate
        if limit.allows(seconds):
            return True
        if not self.dropped_seconds:
            logger.warning("a caller sends audio faster than real time; it is dropped")
        self.dropped_seconds += seconds
        return False
