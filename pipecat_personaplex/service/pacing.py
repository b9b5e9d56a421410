"""Keeping a caller's audio in step with the clock: never stalled, never late."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE

MAX_WAITING_FRAMES = 2
"""Whole frames (80 ms each) that may wait; past it the oldest goes."""

_MS = SAMPLE_RATE // 1000
# Silence is fed once input is this far behind, and only down to the lower figure: the gap between
# the two is what a network may be late without a cut in the caller's words.
_BEHIND_MOST = 80 * _MS
_BEHIND_FILLED = 60 * _MS
# How far ahead of the clock input may run. Chunks arrive whole, so a longer chunk is allowed its
# own length; past the upper figure it would be delay.
_AHEAD_LEAST = 40 * _MS
_AHEAD_MOST = 160 * _MS


@dataclass(frozen=True, slots=True)
class PacingStats:
    """What pacing did to the audio, in samples at 24 kHz.

    Attributes:
        silence: Fed because nothing had arrived in time.
        discarded: Arrived after silence had taken its place, or faster than time passes.
        dropped: Cut into frames that waited too long for the model.
    """

    silence: int
    discarded: int
    dropped: int


class InputPacer:
    """Turns audio that arrives in bursts, or not at all, into one frame every 80 ms.

    The clock says how much audio there should be. What is missing for too long becomes silence,
    and this debt is collected from the burst that follows a stall: input that runs ahead of the
    clock is discarded until the clock has caught up. So a stall never leaves a lasting delay, and
    a microphone that sent nothing at all (muted) loses nothing when it comes back.

    All times are seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._buffer = FrameBuffer()
        self._frames: deque[Pcm] = deque()
        self._origin: float | None = None
        self._taken_in = 0
        self._discarding = False
        self._silence = self._discarded = self._dropped = 0

    @property
    def waiting(self) -> int:
        """Whole frames ready to be taken."""
        return len(self._frames)

    @property
    def stats(self) -> PacingStats:
        """What was done so far."""
        return PacingStats(self._silence, self._discarded, self._dropped)

    def start(self, now: float) -> None:
        """Start the clock; what was fed before counts as having arrived in time."""
        self._taken_in = len(self._frames) * FRAME_SAMPLES + self._buffer.partial_samples
        self._origin = now - self._taken_in / SAMPLE_RATE

    def feed(self, pcm: Pcm, now: float) -> None:
        """Take audio from the caller: float32 mono 24 kHz, any length."""
        if self._origin is not None:
            pcm = self._in_time(pcm, now)
        self._append(pcm)

    def tick(self, now: float) -> None:
        """Feed silence if input has fallen behind; to be called every 20 ms or so."""
        if self._origin is None:
            return
        behind = self._behind(now)
        if behind > _BEHIND_MOST:
            missing = behind - _BEHIND_FILLED
            self._silence += missing
            self._append(np.zeros(missing, dtype=np.float32))

    def take(self) -> Pcm | None:
        """The oldest whole frame, float32 [1920], or None."""
        return self._frames.popleft() if self._frames else None

    def keep(self, frames: int) -> None:
        """Drop the oldest whole frames until at most this many wait."""
        while len(self._frames) > frames:
            self._frames.popleft()
            self._dropped += FRAME_SAMPLES

    def _behind(self, now: float) -> int:
        """Samples that should have arrived by now and have not; negative when ahead."""
        assert self._origin is not None
        return round((now - self._origin) * SAMPLE_RATE) - self._taken_in

    def _in_time(self, pcm: Pcm, now: float) -> Pcm:
        """The part of a chunk that does not run ahead of the clock; the newest, when cut."""
        behind = self._behind(now)
        allowed = min(max(len(pcm), _AHEAD_LEAST), _AHEAD_MOST)
        if len(pcm) - behind > allowed:
            self._discarding = True
        elif behind >= len(pcm):
            self._discarding = False
        if not self._discarding:
            return pcm
        # Once in a burst, all of it goes down to the clock itself: cutting at the limit would
        # leave the limit as delay.
        kept = max(0, min(behind, len(pcm)))
        self._discarded += len(pcm) - kept
        return pcm[len(pcm) - kept :]

    def _append(self, pcm: Pcm) -> None:
        self._taken_in += len(pcm)
        self._frames.extend(self._buffer.push(pcm))
        self.keep(MAX_WAITING_FRAMES)
