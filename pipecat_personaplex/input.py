"""From the frames of a microphone to what the model hears."""

from __future__ import annotations

import numpy as np
from pipecat.frames.frames import InputAudioRawFrame

from pipecat_personaplex.audio import Pcm, pcm16_to_float
from pipecat_personaplex.config import SAMPLE_RATE
from pipecat_personaplex.resampling import StreamResampler


class CallerInput:
    """The caller's audio, of whatever rate and channels; either may change in mid-call."""

    def __init__(self) -> None:
        self._resampler = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)

    def pcm(self, frame: InputAudioRawFrame) -> Pcm:
        """A frame's audio: float32 mono 24 kHz."""
        pcm = pcm16_to_float(np.frombuffer(frame.audio, dtype=np.int16))
        if frame.num_channels > 1:
            pcm = pcm.reshape(-1, frame.num_channels).mean(axis=1)
        if self._resampler.source_rate != frame.sample_rate:
            self._resampler = StreamResampler(frame.sample_rate, SAMPLE_RATE)
        return self._resampler.push(pcm)
