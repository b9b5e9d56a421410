"""Writes down what the caller says, with Whisper on this machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

import numpy as np
import soxr

from pipecat_personaplex.audio import float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from pipecat.frames.frames import Frame
    from pipecat.processors.frame_processor import FrameProcessor

_WHISPER_RATE = 16_000


def whisper(model: str) -> Callable[[], FrameProcessor]:
    """Return a factory of transcribers for the calls of a page.

    Args:
        model: A model of faster-whisper by name, or its folder.
    """

    def create() -> FrameProcessor:
        from pipecat.services.whisper.stt import WhisperSTTService

        class Transcriber(WhisperSTTService):
            """Whisper at 16 kHz in a pipeline at 24 kHz; Pipecat's service converts nothing."""

            async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame, None]:
                pcm = pcm16_to_float(np.frombuffer(audio, dtype=np.int16))
                pcm = soxr.resample(pcm, SAMPLE_RATE, _WHISPER_RATE)
                async for frame in super().run_stt(float_to_pcm16(pcm).tobytes()):
                    yield frame

        return Transcriber(
            settings=WhisperSTTService.Settings(model=model), device="cpu", compute_type="int8"
        )

    return create
