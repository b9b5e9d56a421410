"""Changing the sample rate of a stream, without holding it back."""

from __future__ import annotations

import av
import numpy as np

from pipecat_personaplex.audio import Pcm


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
