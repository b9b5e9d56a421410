"""A call with a backend, whose transcripts a test supplies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.user_start import TranscriptionUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.llm import PersonaPlexLLMService

CHUNK = 480  # 20 ms
TIMEOUT = 20.0


class Ear(FrameProcessor):
    """Stores the frames that leave the agent, with their times."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[float, Frame]] = []
        self.errors: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM:
            self.frames.append((time.monotonic(), frame))
        await self.push_frame(frame, direction)

    def seen(self, kind: type[Frame]) -> list[Any]:
        return [frame for _, frame in self.frames if isinstance(frame, kind)]


def transcript_turns() -> UserTurnStrategies:
    """Turns of a caller whose transcripts a test supplies."""
    return UserTurnStrategies(
        start=[TranscriptionUserTurnStartStrategy(enable_interruptions=False)],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.1)],
    )


class DelegatedCall:
    """A running call. Its caller is silent unless ``microphone`` has audio.

    Args:
        agent: The service.
        context: The conversation.
        before: Processors in front of the user aggregator.
        turns: How the caller's turns are detected; by default, ``transcript_turns``.
        rtvi: Whether RTVI messages are sent.

    Attributes:
        agent: The service.
        context: The conversation.
        errors: What ``on_backend_error`` has reported.
        microphone: Audio that the caller makes next, int16 [n].
    """

    def __init__(
        self,
        agent: PersonaPlexLLMService,
        context: LLMContext,
        before: list[FrameProcessor] | None = None,
        *,
        turns: UserTurnStrategies | None = None,
        rtvi: bool = False,
    ):
        self.agent = agent
        self.context = context
        self.errors: list[str] = []
        self.microphone = np.zeros(0, dtype=np.int16)
        self.ear = Ear()
        pair = LLMContextAggregatorPair(
            context,
            user_params=LLMUserAggregatorParams(user_turn_strategies=turns or transcript_turns()),
        )
        self.worker = PipelineWorker(
            Pipeline([*(before or []), pair.user(), agent, self.ear, pair.assistant()]),
            cancel_on_idle_timeout=False,
            enable_rtvi=rtvi,
            params=PipelineParams(audio_in_sample_rate=24_000, audio_out_sample_rate=24_000),
        )
        self.error_frames: list[ErrorFrame] = []
        self._started = asyncio.Event()

        @agent.event_handler("on_session_started")
        async def on_session_started(service: object, persona: object) -> None:
            self._started.set()

        @agent.event_handler("on_backend_error")
        async def on_backend_error(service: object, message: str) -> None:
            self.errors.append(message)

        @self.worker.event_handler("on_pipeline_error")
        async def on_pipeline_error(worker: object, frame: ErrorFrame) -> None:
            self.error_frames.append(frame)

    async def __aenter__(self) -> DelegatedCall:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        self._run = asyncio.create_task(runner.run())
        await asyncio.wait_for(self._started.wait(), TIMEOUT)
        self._speaking = asyncio.create_task(self._speak())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._speaking.cancel()
        await self.worker.cancel()
        await asyncio.wait_for(self._run, TIMEOUT)

    async def _speak(self) -> None:
        start = time.monotonic()
        for count in range(1, 1_000_000):
            chunk = np.zeros(CHUNK, dtype=np.int16)
            spoken, self.microphone = self.microphone[:CHUNK], self.microphone[CHUNK:]
            chunk[: len(spoken)] = spoken
            await self.worker.queue_frame(InputAudioRawFrame(chunk.tobytes(), 24_000, 1))
            await asyncio.sleep(max(0.0, start + count * CHUNK / 24_000 - time.monotonic()))

    @property
    def words(self) -> str:
        """What the agent has said so far."""
        return " ".join(frame.text.strip() for frame in self.ear.seen(TTSTextFrame))

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of the conversation so far."""
        return [(m["role"], m["content"]) for m in self.context.messages]

    async def begins(self, text: str) -> None:
        """The caller has begun to speak: an interim transcript."""
        await self.worker.queue_frame(InterimTranscriptionFrame(text, "caller", "now"))

    async def says(self, text: str) -> None:
        """The caller has said this: an interim and a final transcript."""
        await self.begins(text.split()[0])
        await asyncio.sleep(0.1)
        await self.worker.queue_frame(TranscriptionFrame(text, "caller", "now", finalized=True))

    async def until(self, condition: Callable[[], object], seconds: float = TIMEOUT) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_said(self, text: str) -> None:
        await self.until(lambda: text in self.words)


@asynccontextmanager
async def delegated_call(
    engine: EngineLike, backend: Any, *, context: LLMContext | None = None, **options: Any
) -> AsyncIterator[DelegatedCall]:
    """A call with a backend; ``options`` are those of ``Delegation``, and ``service``, ``rtvi``."""
    service = options.pop("service", {})
    rtvi = options.pop("rtvi", False)
    agent = PersonaPlexLLMService(
        engine, delegation=PersonaPlexLLMService.Delegation(backend, **options), **service
    )
    async with DelegatedCall(agent, context or LLMContext(), rtvi=rtvi) as call:
        yield call
