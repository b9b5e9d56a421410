"""Watches the caller's side of a call: is anybody there, and not faster than real time?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_personaplex.service.caller_input import FormatCheck
from pipecat_personaplex.service.pace import PaceLimit

_MAX_PARTICIPANTS = 64
_POLL_SECONDS = 0.25


class CallerWatch(FrameProcessor):
    """Drops audio that is too fast or of a wrong format, and notices a caller who is not there.

    Audio is too fast if it arrives faster than real time; ``FormatCheck`` knows wrong formats.

    Place it right after the transport's input, so that what it drops fills no queue.

    Args:
        clock: Returns monotonic seconds.
        **kwargs: Passed to ``FrameProcessor``.

    Attributes:
        dropped_seconds: Audio that was dropped so far.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, **kwargs: Any):
        super().__init__(enable_direct_mode=True, **kwargs)  # quick: needs no queue of its own
        self._clock = clock
        self._heard = clock()
        self._connected = False
        # One for each participant: each of them speaks in real time.
        self._limits: dict[str | None, PaceLimit] = {}
        self._formats = FormatCheck()
        self.dropped_seconds = 0.0

    def connected(self) -> None:
        """Note that the caller has connected; the time without audio begins."""
        self._connected = True
        self._heard = self._clock()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Note that audio has arrived, and push every frame on but audio that is not allowed."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._heard = self._clock()
            if not (self._formats.allows(frame) and self._allows(frame)):
                return
        await self.push_frame(frame, direction)

    async def end_if_absent(
        self,
        connect_seconds: float | None,
        silent_seconds: float | None,
        end: Callable[[str], Awaitable[None]],
    ) -> None:
        """Wait until the caller is absent for too long, and end the call.

        Args:
            connect_seconds: How long the caller may take to connect; None for no limit.
            silent_seconds: How long no audio may arrive after that; None for no limit.
            end: Ends the call, for a reason.
        """
        while True:
            limit = silent_seconds if self._connected else connect_seconds
            if limit is not None and self._clock() - self._heard >= limit:
                break
            await asyncio.sleep(_POLL_SECONDS)
        what = "no audio from the caller" if self._connected else "the caller did not connect"
        await end(f"{what} for {limit:g} s")

    def _allows(self, frame: InputAudioRawFrame) -> bool:
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
