"""What the caller says, as text: the options, and the processors that transcribe it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.user_start import (
    TranscriptionUserTurnStartStrategy,
    VADUserTurnStartStrategy,
)
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies, UserTurnStrategies

from pipecat_personaplex.audio import float_to_pcm16, pcm16_to_float
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.audio import StreamResampler
from pipecat_personaplex.talk.transcriber import load_whisper

STT_RATE = 16_000
"""Sample rate of the audio that a speech-to-text service gets, in Hz."""

DEFAULT_WHISPER = "base.en"
# Speech ends after this pause. Whisper transcribes what is between two such pauses, and a shorter
# one would cut sentences into pieces.
_SPEECH_PAUSE_SECONDS = 0.4
# A caller's turn ends when this much more time has passed and the transcript has arrived.
_TURN_PAUSE_SECONDS = 0.2
# A little less than three chunks of 20 ms: sums of such durations are not exact.
_PIECE_SECONDS = 0.0599
# Whisper shares the processor with whatever runs the calls.
_WHISPER_THREADS = 2
# How long the turn waits for a transcript that is late.
_WHISPER_SECONDS = 2.0

CreateStt = Callable[[], FrameProcessor]


def add_stt_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--stt`` and ``--stt-model``."""
    parser.add_argument(
        "--stt",
        metavar="none|whisper|deepgram|MODULE:FUNCTION",
        default=os.environ.get("PERSONAPLEX_STT") or "none",
        help="speech-to-text for the caller's words: whisper runs in this process and needs no "
        "network; deepgram needs DEEPGRAM_API_KEY; MODULE:FUNCTION is your own function, which "
        "is called with sample_rate=16000 and returns a speech-to-text service of Pipecat's "
        "(default: none; environment: PERSONAPLEX_STT)",
    )
    parser.add_argument(
        "--stt-model",
        metavar="NAME|FOLDER",
        default=os.environ.get("PERSONAPLEX_STT_MODEL") or None,
        help="Whisper's model: a name such as tiny.en, base.en or small, which is downloaded once, "
        f"or a folder with a converted model (default: {DEFAULT_WHISPER}; environment: "
        "PERSONAPLEX_STT_MODEL)",
    )


def choose_stt(args: argparse.Namespace) -> CreateStt | None:
    """Check the options and load what all calls share.

    Returns:
        Creates the speech-to-text service of one call; None for ``--stt none``.

    Raises:
        ConfigError: A package, a variable, a model or a function is missing.
    """
    if args.stt_model and args.stt != "whisper":
        raise ConfigError("--stt-model needs --stt whisper")
    if args.stt == "none":
        return None
    if args.stt == "whisper":
        return _whisper(args.stt_model or DEFAULT_WHISPER)
    if args.stt == "deepgram":
        return _deepgram()
    if ":" in args.stt:
        return _function(args.stt)
    raise ConfigError(
        f"--stt is {args.stt!r}; it must be none, whisper, deepgram or MODULE:FUNCTION"
    )


def transcribe(stt: FrameProcessor) -> FrameProcessor:
    """Transcription beside the audio of a pipeline; place it in front of the user aggregator.

    In a branch of its own, the audio is resampled to 16 kHz and goes through Silero's voice
    activity detection and the service. What they report joins the pipeline; the pipeline's own
    audio does not wait for them.

    Args:
        stt: A speech-to-text service for audio at 16 kHz.
    """
    vad = _Silero(params=VADParams(stop_secs=_SPEECH_PAUSE_SECONDS))
    branch = [_AtSttRate(), VADProcessor(vad_analyzer=vad), stt, _WithoutAudio()]
    return ParallelPipeline(branch, [IdentityFilter(enable_direct_mode=True)])  # type: ignore[no-untyped-call]


def turn_strategies(*, transcribed: bool) -> UserTurnStrategies:
    """How the caller's turns are detected; none of these strategies interrupts the agent."""
    if not transcribed:
        return ExternalUserTurnStrategies(enable_interruptions=False)
    # Its only warning, one a call, says that a pause of 0.4 s is not Pipecat's default.
    logger.disable(SpeechTimeoutUserTurnStopStrategy.__module__)
    return UserTurnStrategies(
        start=[
            VADUserTurnStartStrategy(enable_interruptions=False),
            TranscriptionUserTurnStartStrategy(enable_interruptions=False),
        ],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=_TURN_PAUSE_SECONDS)],
    )


class _Silero(SileroVADAnalyzer):
    """Silero for audio at 16 kHz in a pipeline of any rate."""

    def set_sample_rate(self, sample_rate: int) -> None:
        """Ignore the pipeline's rate, which Silero may refuse."""
        super().set_sample_rate(STT_RATE)


class _AtSttRate(FrameProcessor):
    """Replaces the caller's audio by the same at 16 kHz, mono, in pieces of at least 60 ms.

    Transports deliver 10 or 20 ms at a time, and each frame costs time in each processor.
    """

    def __init__(self) -> None:
        super().__init__(enable_direct_mode=True)  # quick: needs no queue of its own
        self._resampler = StreamResampler(STT_RATE, STT_RATE)
        self._waiting: list[InputAudioRawFrame] = []  # of one rate and number of channels
        self._seconds = 0.0  # of the audio that waits

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, InputAudioRawFrame):
            await self.push_frame(frame, direction)
            return
        if self._waiting and _format(self._waiting[0]) != _format(frame):
            await self._push_waiting(direction)
        self._waiting.append(frame)
        self._seconds += frame.num_frames / frame.sample_rate
        if self._seconds >= _PIECE_SECONDS:
            await self._push_waiting(direction)

    async def _push_waiting(self, direction: FrameDirection) -> None:
        frames, self._waiting, self._seconds = self._waiting, [], 0.0
        rate, channels = _format(frames[0])
        audio = b"".join(frame.audio for frame in frames)
        pcm = pcm16_to_float(np.frombuffer(audio, dtype=np.int16))
        if channels > 1:
            pcm = pcm.reshape(-1, channels).mean(axis=1)
        if self._resampler.source_rate != rate:
            self._resampler = StreamResampler(rate, STT_RATE)
        samples = float_to_pcm16(self._resampler.push(pcm))
        await self.push_frame(InputAudioRawFrame(samples.tobytes(), STT_RATE, 1), direction)


def _format(frame: InputAudioRawFrame) -> tuple[int, int]:
    return frame.sample_rate, frame.num_channels


class _WithoutAudio(FrameProcessor):
    """Keeps the branch's copy of the audio from joining the pipeline."""

    def __init__(self) -> None:
        super().__init__(enable_direct_mode=True)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, InputAudioRawFrame):
            await self.push_frame(frame, direction)


def _whisper(name: str) -> CreateStt:
    try:
        from pipecat.services.whisper.stt import WhisperSTTService

        # Loaded once: Pipecat would load it for each call, within the event loop.
        model = load_whisper(name, "--stt-model", _WHISPER_THREADS)
    except ImportError:
        raise ConfigError(
            "--stt whisper needs a package: pip install 'pipecat-ai[whisper]'"
        ) from None
    from pipecat.transcriptions.language import Language

    class SharedWhisper(WhisperSTTService):
        """Pipecat's service with the model that all calls share."""

        def _load(self) -> None:
            self._model = model

    def create() -> FrameProcessor:
        service: FrameProcessor = SharedWhisper(
            sample_rate=STT_RATE,
            ttfs_p99_latency=_WHISPER_SECONDS,
            settings=WhisperSTTService.Settings(model=name, language=Language.EN),
        )
        return service

    return create


def _deepgram() -> CreateStt:
    if importlib.util.find_spec("deepgram") is None:
        raise ConfigError("--stt deepgram needs a package: pip install 'pipecat-ai[deepgram]'")
    if not (key := os.environ.get("DEEPGRAM_API_KEY")):
        raise ConfigError("--stt deepgram needs DEEPGRAM_API_KEY; get one on deepgram.com")
    from pipecat.services.deepgram.stt import DeepgramSTTService

    return lambda: DeepgramSTTService(api_key=key, sample_rate=STT_RATE)


def _function(name: str) -> CreateStt:
    module_name, _, function_name = name.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--stt {name} cannot be imported: {error}") from None
    if not callable(function):
        raise ConfigError(f"--stt {name} is not a function")

    def create() -> FrameProcessor:
        service = function(sample_rate=STT_RATE)
        if not isinstance(service, FrameProcessor):
            raise ConfigError(f"--stt {name} returned {type(service).__name__}, no service")
        return service

    return create
