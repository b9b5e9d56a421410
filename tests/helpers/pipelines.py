"""A running pipeline that a test controls frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    SpeechOutputAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.llm import PersonaPlexLLMService

F = TypeVar("F", bound=Frame)
TIMEOUT = 10.0


class ManualClock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Watcher(FrameProcessor):
    """Collects the frames that pass in one direction."""

    def __init__(self, direction: FrameDirection, frames: list[Frame]):
        super().__init__(enable_direct_mode=True)
        self._direction = direction
        self._frames = frames

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is self._direction:
            self._frames.append(frame)
        await self.push_frame(frame, direction)


class RunningPipeline:
    """Processors between two watchers, running inside an ``async with`` block."""

    def __init__(
        self,
        processors: Sequence[FrameProcessor],
        *,
        params: PipelineParams | None = None,
        clock: ManualClock | None = None,
        policy: ProcessorUnusablePolicy = ProcessorUnusablePolicy.CONTINUE,
    ):
        self.down: list[Frame] = []
        self.up: list[Frame] = []
        self.clock = clock or ManualClock()
        source = _Watcher(FrameDirection.UPSTREAM, self.up)
        sink = _Watcher(FrameDirection.DOWNSTREAM, self.down)
        self.worker = PipelineWorker(
            Pipeline([source, *processors, sink]),
            cancel_on_idle_timeout=False,
            enable_rtvi=False,
            processor_unusable_policy=policy,
            params=params or PipelineParams(),
        )

    async def __aenter__(self) -> RunningPipeline:
        started = asyncio.Event()

        @self.worker.event_handler("on_pipeline_started")
        async def on_pipeline_started(worker: object, frame: Frame) -> None:
            started.set()

        runner = WorkerRunner()
        await runner.add_workers(self.worker)
        self._run = asyncio.create_task(runner.run())
        await asyncio.wait_for(started.wait(), TIMEOUT)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            await self.worker.cancel()
        await self.end()

    async def end(self) -> None:
        """End the pipeline and wait until it has ended."""
        if not self._run.done():
            await self.worker.queue_frame(EndFrame())
        await asyncio.wait_for(self._run, TIMEOUT)

    async def end_while_time_passes(self) -> None:
        """End the pipeline while the clock advances and no audio arrives."""
        ending = asyncio.create_task(self.end())
        while not ending.done():
            self.clock.now += 0.02
            await asyncio.sleep(0.002)
        await ending

    async def ended(self) -> None:
        """Wait until the pipeline has ended by itself."""
        await asyncio.wait_for(asyncio.shield(self._run), TIMEOUT)

    async def cancel(self) -> None:
        """Cancel the pipeline and wait until it has ended."""
        await self.worker.cancel()
        await asyncio.wait_for(self._run, TIMEOUT)

    async def send(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        await self.worker.queue_frame(frame, direction)

    def seen(self, kind: type[F]) -> list[F]:
        """Frames of a type that have left the pipeline downstream so far."""
        return [frame for frame in self.down if isinstance(frame, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; fails after ``TIMEOUT`` seconds."""
        async with asyncio.timeout(TIMEOUT):
            # Poll: conditions depend on other threads too, which set no asyncio.Event.
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def until_count(self, kind: type[Frame], count: int) -> None:
        await self.until(lambda: len(self.seen(kind)) >= count)

    async def speak(
        self,
        samples: np.ndarray,
        *,
        rate: int = 24_000,
        chunk: float = 0.02,
        real_time: bool = True,
    ) -> None:
        """Send audio as a microphone does, and wait until each chunk has passed the pipeline.

        Args:
            samples: int16 [n] or [n, channels].
            rate: Sample rate in Hz.
            chunk: Seconds of audio per frame.
            real_time: Whether the clock advances by each chunk's length; else all is one burst.
        """
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        count = round(rate * chunk)
        for start in range(0, len(samples), count):
            piece = samples[start : start + count]
            passed = len(self.seen(InputAudioRawFrame))
            if real_time:
                self.clock.now += len(piece) / rate
            await self.send(InputAudioRawFrame(piece.tobytes(), rate, channels))
            await self.until_count(InputAudioRawFrame, passed + 1)

    def audio(self) -> np.ndarray:
        """The agent's audio so far, int16 [n]."""
        chunks = [
            np.frombuffer(frame.audio, dtype=np.int16)
            for frame in self.seen(SpeechOutputAudioRawFrame)
        ]
        return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)


class Events:
    """Records the events of a service."""

    def __init__(self, service: PersonaPlexLLMService):
        self.seen: list[tuple[Any, ...]] = []
        for name in (
            "on_session_started",
            "on_session_ended",
            "on_prompt_changed",
            "on_speech_started",
            "on_speech_cut",
            "on_speech_done",
            "on_late_frame",
        ):
            service.add_event_handler(name, self._handler(name))

    def _handler(self, name: str) -> Callable[..., Any]:
        async def handler(service: PersonaPlexLLMService, *args: object) -> None:
            self.seen.append((name, *args))

        return handler

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.seen if event[0] == name]


async def started(pipeline: RunningPipeline, events: Events, count: int = 1) -> None:
    await pipeline.until(lambda: len(events.named("on_session_started")) >= count)


@asynccontextmanager
async def on_call(
    engine: EngineLike, clock: ManualClock, **options: Any
) -> AsyncIterator[tuple[PersonaPlexLLMService, RunningPipeline, Events]]:
    """A service alone in its pipeline; its session has started."""
    service = PersonaPlexLLMService(engine, clock=clock, **options)
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        yield service, pipeline, events


def errors(pipeline: RunningPipeline) -> list[ErrorFrame]:
    return [frame for frame in pipeline.up if isinstance(frame, ErrorFrame)]


def tone(seconds: float, rate: int = 24_000, hertz: float = 440.0, peak: int = 8_000) -> np.ndarray:
    """A sine wave, int16 [n]."""
    time = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
