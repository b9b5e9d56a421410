"""When the caller has begun to speak, as far as words of the agent give way to it."""

from __future__ import annotations

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE

INTERRUPT_SECONDS = 0.24
"""How long the caller speaks before interruptible words are cut: longer than a cough."""

# RMS of 80 ms, in decibels of full scale. Speech into a microphone is louder, its noise is not.
_SPEECH_DBFS = -40.0


def is_speech(frame: Pcm) -> bool:
    """Whether 80 ms of the caller's audio, float32 [1920], are loud enough to be speech."""
    return float(np.square(frame).mean()) >= 10 ** (_SPEECH_DBFS / 10)


class CallerSpeech:
    """Tells when the caller has spoken for ``INTERRUPT_SECONDS``, once each time that it begins.

    A voice activity detector in the pipeline decides what is speech. Until one has reported, the
    loudness of the audio decides.

    Example::

        caller = CallerSpeech()
        if caller.push(pcm):        # for all audio; caller.vad(True) when a detector reports
            call.speech.interrupt()
    """

    def __init__(self) -> None:
        self._buffer = FrameBuffer()
        self._vad_seen = False
        self._speaking = False  # according to the detector
        self._seconds = 0.0  # of speech without a pause
        self._reported = False  # this speech has been reported

    def vad(self, speaking: bool, seconds: float = 0.0) -> None:
        """Take what a detector reports.

        Args:
            speaking: Whether the caller speaks from now on.
            seconds: How long the caller has spoken already.
        """
        self._vad_seen = True
        if speaking and not self._speaking:
            self._seconds, self._reported = seconds, False
        self._speaking = speaking

    def push(self, pcm: Pcm) -> bool:
        """Add audio of the caller: float32 [n] mono 24 kHz.

        Returns:
            Whether the caller has now spoken for ``INTERRUPT_SECONDS``.
        """
        if self._vad_seen:
            return self._count(len(pcm), self._speaking)
        reached = [self._count(FRAME_SAMPLES, is_speech(frame)) for frame in self._buffer.push(pcm)]
        return any(reached)

    def _count(self, samples: int, speech: bool) -> bool:
        if not speech:
            self._seconds, self._reported = 0.0, False
            return False
        self._seconds += samples / SAMPLE_RATE
        # Rounded: three frames of 0.08 s need not add up to 0.24 s exactly.
        if self._reported or round(self._seconds, 6) < INTERRUPT_SECONDS:
            return False
        self._reported = True
        return True
