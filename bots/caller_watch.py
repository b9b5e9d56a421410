"""Ends the call of an absent caller, and drops audio that arrives faster than real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pipecat.frames.frames import InputAudioRawFrame

from pipecat_personaplex.service.caller_input import FormatCheck
from pipecat_personaplex.service.pace import PacedInput

_POLL_SECONDS = 0.25


class CallerWatch(PacedInput):
    """Drops audio that is too fast or of a wrong format, and notices a caller who is not there.

    Audio is too fast if it arrives faster than real time; ``FormatCheck`` knows wrong formats.

    Args:
        clock: Returns monotonic seconds.
        **kwargs: Passed to ``FrameProcessor``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, **kwargs: Any):
        super().__init__(clock, **kwargs)
        self._heard = clock()
        self._connected = False
        self._formats = FormatCheck()

    def connected(self) -> None:
        """Note that the caller has connected; the time without audio begins."""
        self._connected = True
        self._heard = self._clock()

    def allows(self, frame: InputAudioRawFrame) -> bool:
        """Note that audio has arrived; whether its format and its pace are allowed."""
        self._heard = self._clock()
        return self._formats.allows(frame) and super().allows(frame)

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
