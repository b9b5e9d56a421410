"""Making the agent's silence silent."""

from __future__ import annotations

import av
import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES

# Loudness is judged over 10 ms, so that a short onset is not averaged away.
_BLOCK = FRAME_SAMPLES // 8
# Frames (80 ms) that stay open after the last loud one: the tail of a word is quiet.
_HOLD_FRAMES = 3
# 5 ms, so that closing does not click.
_FADE = FRAME_SAMPLES // 16


class NoiseGate:
    """Replaces quiet frames by zeros, so that a listener can tell when the agent has stopped.

    The codec's idea of silence is faint noise, which counts as speech for whoever compares
    samples with zero. A frame with any loud 10 ms passes whole, onset included, and so do the
    frames right after it.

    Args:
        threshold_dbfs: RMS level from which 10 ms are loud, in decibels of full scale.
    """

    def __init__(self, threshold_dbfs: float):
        self._threshold = 10 ** (threshold_dbfs / 10)  # of the mean square
        self._open_for = 0

    def process(self, pcm: Pcm) -> tuple[Pcm, bool]:
        """Gate one frame.

        Args:
            pcm: float32 [1920].

        Returns:
            The frame, and whether it is all zeros.
        """
        power = np.square(pcm.reshape(-1, _BLOCK)).mean(axis=1)
        if power.max() >= self._threshold:
            self._open_for = _HOLD_FRAMES
            return pcm, False
        if not self._open_for:
            return np.zeros_like(pcm), True
        self._open_for -= 1
        if not self._open_for:
            pcm = pcm.copy()
            pcm[-_FADE:] *= np.linspace(1, 0, _FADE, dtype=np.float32)
        return pcm, False


class StreamResampler:
    """Resamples a mono stream chunk by chunk, at most 2 ms late.

    The filter's delay is paid once, in silence before the first sample; from then on every chunk
    comes out at its full length, so that 80 ms in are 80 ms out.

    Args:
        source_rate: Of what is pushed, in Hz.
        target_rate: Of what comes out, in Hz.
    """

    def __init__(self, source_rate: int, target_rate: int):
        self.source_rate = source_rate
        self.target_rate = target_rate
        self._resampler: av.AudioResampler | None = None
        if source_rate != target_rate:
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=target_rate)
            # 20 ms, longer than any filter here.
            self.push(np.zeros(source_rate // 50, dtype=np.float32))

    def push(self, pcm: Pcm) -> Pcm:
        """Resample a chunk: float32 [n] -> float32 [n * target / source, give or take one]."""
        if self._resampler is None or not len(pcm):
            return pcm
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = self.source_rate
        chunks = [chunk.to_ndarray().reshape(-1) for chunk in self._resampler.resample(frame)]
        return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
