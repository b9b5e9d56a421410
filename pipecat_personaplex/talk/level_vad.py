"""When the caller speaks, by level: for response times and transcripts, not for the model."""

from __future__ import annotations

import numpy as np
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams

from pipecat_personaplex.audio import SpeechDetector, pcm16_to_float
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE

# SpeechDetector itself goes on for 0.32 s after the last loud frame, so gaps between words count
# as speech, and one quiet frame is enough for an end.
_HANGOVER_SECONDS = 0.32
_FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE


class LevelVAD(VADAnalyzer):
    """Detects the caller's speech by level, without a network; for pipelines at 24 kHz.

    The model decides by itself when to speak, so that nothing but measurements and transcripts
    depends on this detector.

    Example::

        pipeline = Pipeline([transport.input(), VADProcessor(vad_analyzer=LevelVAD()), agent])
    """

    def __init__(self) -> None:
        super().__init__(
            params=VADParams(
                confidence=0.5,
                start_secs=2 * _FRAME_SECONDS,
                stop_secs=_HANGOVER_SECONDS + _FRAME_SECONDS,
                min_volume=0.0,
            )
        )
        self._detector = SpeechDetector()

    def num_frames_required(self) -> int:
        """Samples of one frame of the model, 80 ms."""
        return FRAME_SAMPLES

    def voice_confidence(self, buffer: bytes) -> float:
        """1 while the caller speaks, else 0.

        Args:
            buffer: 16-bit samples [1920].
        """
        self._detector.push(pcm16_to_float(np.frombuffer(buffer, dtype=np.int16)))
        return float(self._detector.speaking)
