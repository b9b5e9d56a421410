"""Audio processing between the model and Pipecat: a noise gate and a streaming resampler."""

from __future__ import annotations

import av
import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES

# Loudness is measured over 10 ms, so that averaging does not hide a short onset.
_BLOCK_SAMPLES = FRAME_SAMPLES // 8
# Frames (80 ms) for which the gate stays open after a loud one: the tail of a word is quiet.
_HOLD_FRAMES = 3
# 5 ms, so that closing the gate does not click.
_FADE_SAMPLES = FRAME_SAMPLES // 16


class NoiseGate:
    """Replaces quiet frames by zeros, so that a listener can tell when the agent has stopped.

    The codec renders silence as faint noise, which Pipecat's output counts as speech: it compares
    samples with zero. A frame passes unchanged if any 10 ms of it are loud; so do the frames
    right after it.

    Args:
        threshold_dbfs: RMS level from which 10 ms count as loud, in decibels of full scale.

    Example::

        gate = NoiseGate(-50.0)
        pcm, silent = gate.process(frame.pcm)
    """

    def __init__(self, threshold_dbfs: float):
        self._threshold = 10 ** (threshold_dbfs / 10)  # of the mean square
        self._open_frames = 0

    def process(self, pcm: Pcm) -> tuple[Pcm, bool]:
        """Gate one frame.

        Args:
            pcm: float32 [1920]; not modified.

        Returns:
            The gated frame, float32 [1920], and whether it is all zeros.
        """
        power = np.square(pcm.reshape(-1, _BLOCK_SAMPLES)).mean(axis=1)  # [1920] -> [8]
        if power.max() >= self._threshold:
            self._open_frames = _HOLD_FRAMES
            return pcm, False
        if not self._open_frames:
            return np.zeros_like(pcm), True
        self._open_frames -= 1
        if not self._open_frames:
            pcm = pcm.copy()
            pcm[-_FADE_SAMPLES:] *= np.linspace(1, 0, _FADE_SAMPLES, dtype=np.float32)
        return pcm, False


class StreamResampler:
    """Resamples a mono stream chunk by chunk, with a delay of at most 2 ms.

    The filter's delay becomes silence before the first sample. Every chunk then comes out at its
    full length: 80 ms in give 80 ms out.

    Args:
        source_rate: Sample rate of the input, in Hz.
        target_rate: Sample rate of the output, in Hz.

    Example::

        resampler = StreamResampler(8_000, 24_000)
        pcm = resampler.push(chunk)             # [160] -> [480]
    """

    def __init__(self, source_rate: int, target_rate: int):
        self.source_rate = source_rate
        self.target_rate = target_rate
        self._resampler: av.AudioResampler | None = None
        if source_rate != target_rate:
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=target_rate)
            # 20 ms of silence fill the filter, whose delay is shorter at every rate in use.
            self.push(np.zeros(source_rate // 50, dtype=np.float32))

    def push(self, pcm: Pcm) -> Pcm:
        """Resample a chunk: float32 [n] -> float32 [n * target / source], give or take a sample."""
        if self._resampler is None or not len(pcm):
            return pcm
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = self.source_rate
        chunks = [chunk.to_ndarray().reshape(-1) for chunk in self._resampler.resample(frame)]
        return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
