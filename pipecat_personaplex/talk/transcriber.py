"""Writes down what the caller says, with Whisper on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from pipecat_personaplex.audio import float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from pipecat.frames.frames import Frame
    from pipecat.processors.frame_processor import FrameProcessor

_WHISPER_RATE = 16_000
# Whisper shares the processor with the model, which must not wait.
_MAX_THREADS = 4
_NICE = 10
# How long Pipecat's turn detection waits for a transcript that is late.
_LATE_SECONDS = 2.0


class Whisper:
    """Whisper for the calls of a page, which share one model.

    Args:
        name: A model of faster-whisper by name, or its folder.

    Example::

        whisper = Whisper("tiny.en")
        whisper.load()
        pipeline = Pipeline([transport.input(), whisper.create(), ...])
    """

    def __init__(self, name: str):
        self._name = name
        self._model: WhisperModel | None = None

    def load(self) -> None:
        """Load the model; a name is downloaded once.

        Raises:
            ConfigError: It cannot be loaded.
        """
        threads = min(_MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))

        def load() -> WhisperModel:
            # On Linux a priority is that of a thread, and the threads that Whisper starts inherit
            # it: a transcript waits for the model's steps, and not they for it.
            if sys.platform == "linux":
                os.nice(_NICE)
            model: WhisperModel = load_whisper(self._name, "--transcribe", threads)
            return model

        with ThreadPoolExecutor(1) as thread:
            self._model = thread.submit(load).result()

    def create(self) -> FrameProcessor:
        """Create the transcriber of one call, for pipelines at 24 kHz."""
        from pipecat.services.whisper.stt import WhisperSTTService
        from pipecat.transcriptions.language import Language

        model = self._model

        class Transcriber(WhisperSTTService):
            """Pipecat's service with the shared model; it converts to Whisper's rate."""

            def _load(self) -> None:
                self._model = model

            async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame, None]:
                pcm = pcm16_to_float(np.frombuffer(audio, dtype=np.int16))
                pcm = soxr.resample(pcm, SAMPLE_RATE, _WHISPER_RATE)
                async for frame in super().run_stt(float_to_pcm16(pcm).tobytes()):
                    yield frame

        return Transcriber(
            ttfs_p99_latency=_LATE_SECONDS,
            settings=WhisperSTTService.Settings(model=self._name, language=Language.EN),
        )


def load_whisper(name: str, option: str, threads: int) -> Any:
    """Load a model of faster-whisper.

    Args:
        name: Its name, which is downloaded once, or its folder.
        option: The option that names it, for errors.
        threads: Threads of the processor that it uses.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from faster_whisper import WhisperModel

    try:
        return WhisperModel(name, device="cpu", compute_type="int8", cpu_threads=threads)
    except Exception as error:  # of faster-whisper, CTranslate2 or the Hugging Face client
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{option} {name}: Whisper's model cannot be loaded: {reason}; give a name such as "
            "tiny.en, or the folder of a model"
        ) from None
