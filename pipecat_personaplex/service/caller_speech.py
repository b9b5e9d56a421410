"""When the caller speaks: words of the agent give way to it, and the call is not idle."""

from __future__ import annotations

from pipecat_personaplex.audio import FrameBuffer, Pcm, SpeechDetector
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE

INTERRUPT_SECONDS = 0.24
"""How long the caller speaks before interruptible words are cut: longer than a cough."""

# How often a caller who speaks is reported.
_REPORT_SECONDS = 1.0


class CallerSpeech:
    """Tells when the caller has spoken for ``INTERRUPT_SECONDS``, once each time that it begins.

    A voice activity detector in the pipeline decides what is speech. Until one has reported, the
    level of the audio decides, compared with the noise before it.

    Example::

        caller = CallerSpeech()
        if caller.push(pcm):        # for all audio; caller.vad(True) when a detector reports
            call.speech.interrupt()
    """

    def __init__(self) -> None:
        self._buffer = FrameBuffer()
        self._detector = SpeechDetector(hangover_frames=1)
        self._vad_seen = False
        self._speaking = False  # according to the detector
        self._seconds = 0.0  # of speech without a pause
        self._reported = False  # this speech has been reported
        self._unreported_seconds = _REPORT_SECONDS  # since ``still_speaking`` was True

    @property
    def speaking(self) -> bool:
        """Whether the caller speaks in the newest audio."""
        return self._seconds > 0

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

    def mute(self) -> None:
        """The caller is not heard from now on: no audio follows, and no report of the end."""
        self._speaking = False
        self._count(0, speech=False)

    def push(self, pcm: Pcm) -> bool:
        """Add audio of the caller: float32 [n] mono 24 kHz.

        Returns:
            Whether the caller has now spoken for ``INTERRUPT_SECONDS``.
        """
        if self._vad_seen:
            return self._count(len(pcm), self._speaking)
        self._unreported_seconds += len(pcm) / SAMPLE_RATE
        reached = [
            self._count(FRAME_SAMPLES, self._is_speech(frame)) for frame in self._buffer.push(pcm)
        ]
        return any(reached)

    def still_speaking(self) -> bool:
        """Whether the caller speaks; True at most once a second, and never with a detector.

        A detector in the pipeline reports a caller who goes on speaking by itself.
        """
        if self._vad_seen or not self._seconds or self._unreported_seconds < _REPORT_SECONDS:
            return False
        self._unreported_seconds = 0.0
        return True

    def _is_speech(self, frame: Pcm) -> bool:
        self._detector.push(frame)
        return self._detector.speaking

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
