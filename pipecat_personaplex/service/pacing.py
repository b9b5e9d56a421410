"""Paces the caller's audio by the clock: the model is never short of input, and never behind."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE

MAX_WAITING_FRAMES = 2
"""Whole frames (80 ms each) that may wait; beyond it the oldest frame is dropped."""

_MS = SAMPLE_RATE // 1000
# Silence is inserted once input is 80 ms behind, and only until it is 60 ms behind. Audio that a
# network delays by less than this is not cut.
_SILENCE_ABOVE = 80 * _MS
_SILENCE_UNTIL = 60 * _MS
# How far input may run ahead of the clock: the length of the chunk that arrives, within these
# limits. Chunks arrive whole, so a long chunk needs more. Beyond 160 ms it would be a delay.
_MIN_AHEAD = 40 * _MS
_MAX_AHEAD = 160 * _MS


@dataclass(frozen=True, slots=True)
class PacingStats:
    """What pacing did to the audio so far, in samples at 24 kHz.

    Attributes:
        silence: Inserted because no audio had arrived in time.
        discarded: Left out because silence had replaced it, or because it ran ahead of the clock.
        dropped: Left out in whole frames that had waited too long for the model.
    """

    silence: int
    discarded: int
    dropped: int


class InputPacer:
    """Turns audio that arrives in bursts, or not at all, into one frame every 80 ms.

    The clock determines how much audio should have arrived. Audio that is missing for too long is
    replaced by silence. The burst that follows a stall then runs ahead of the clock, and is
    discarded until the clock has caught up. A stall therefore leaves no lasting delay, and a
    microphone that recorded nothing (muted) loses nothing when it comes back.

    All times are seconds of any monotonic clock.

    Example::

        pacer = InputPacer()
        pacer.start(time.monotonic())
        pacer.push(pcm, time.monotonic())       # as audio arrives
        pacer.tick(time.monotonic())            # every 20 ms
        while (frame := pacer.take()) is not None:
            session.push(frame)
    """

    def __init__(self) -> None:
        self._buffer = FrameBuffer()
        self._frames: deque[Pcm] = deque()
        self._origin: float | None = None  # the time of the first sample; None before start()
        self._accepted = 0  # samples since the origin, silence included
        self._discarding = False
        self._silence = self._discarded = self._dropped = 0

    @property
    def waiting(self) -> int:
        """Whole frames ready to be taken."""
        return len(self._frames)

    @property
    def stats(self) -> PacingStats:
        """What pacing did so far."""
        return PacingStats(self._silence, self._discarded, self._dropped)

    def start(self, now: float) -> None:
        """Start the clock. Audio that waits already counts as having arrived in time."""
        self._accepted = len(self._frames) * FRAME_SAMPLES + self._buffer.partial_samples
        self._origin = now - self._accepted / SAMPLE_RATE

    def push(self, pcm: Pcm, now: float) -> None:
        """Add the caller's audio: float32 mono 24 kHz, any length."""
        if self._origin is not None:
            pcm = self._discard_ahead(pcm, now)
        self._append(pcm)

    def tick(self, now: float) -> None:
        """Insert silence if input has fallen behind; call this about every 20 ms."""
        if self._origin is None:
            return
        behind = self._behind(now)
        if behind > _SILENCE_ABOVE:
            missing = behind - _SILENCE_UNTIL
            self._silence += missing
            self._append(np.zeros(missing, dtype=np.float32))

    def take(self) -> Pcm | None:
        """Remove and return the oldest whole frame, float32 [1920]; None if no frame waits."""
        return self._frames.popleft() if self._frames else None

    def trim(self, frames: int) -> None:
        """Drop the oldest whole frames until at most this many wait."""
        while len(self._frames) > frames:
            self._frames.popleft()
            self._dropped += FRAME_SAMPLES

    def _behind(self, now: float) -> int:
        """Samples that should have arrived by now and have not; negative if input is ahead."""
        assert self._origin is not None
        return round((now - self._origin) * SAMPLE_RATE) - self._accepted

    def _discard_ahead(self, pcm: Pcm, now: float) -> Pcm:
        """Return the newest part of a chunk, without what runs too far ahead of the clock."""
        behind = self._behind(now)
        allowed = min(max(len(pcm), _MIN_AHEAD), _MAX_AHEAD)
        if len(pcm) - behind > allowed:
            self._discarding = True
        elif behind >= len(pcm):
            self._discarding = False
        if not self._discarding:
            return pcm
        # Within a burst, discard down to the clock itself: discarding down to the limit would
        # leave a delay of that size.
        accepted = max(0, min(behind, len(pcm)))
        self._discarded += len(pcm) - accepted
        return pcm[len(pcm) - accepted :]

    def _append(self, pcm: Pcm) -> None:
        self._accepted += len(pcm)
        self._frames.extend(self._buffer.push(pcm))
        self.trim(MAX_WAITING_FRAMES)
