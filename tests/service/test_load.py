"""Ten callers in one process and in real time, with the small golden checkpoint.

The model is tiny, so this measures everything else: Pipecat, the service and the engine's thread,
all in one interpreter. ``PERSONAPLEX_LOAD_SECONDS=120`` runs the full two minutes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from tests.golden_data import CHECKPOINT
from tests.helpers.pipelines import TIMEOUT
from tests.helpers.transports import FakeTransport

pytestmark = pytest.mark.serial

SECONDS = float(os.environ.get("PERSONAPLEX_LOAD_SECONDS", "9"))
CALLERS = 10
# A long run is a measurement of ten callers. A short one adapts to the machine: model thread and
# event loop share the interpreter's lock, and small machines keep fewer callers in time.
NUMBERS = (CALLERS,) if SECONDS >= 120 else (CALLERS, 5, 3)
MIC_RATE = 16_000
CHUNK = 0.02
# After this time, caches, arenas and the interpreter's own lists have reached their size.
WARM_UP = SECONDS / 3


class Caller:
    """A pipeline as the bots build it, with a microphone that is always on time."""

    def __init__(self, engine: Engine, number: int):
        self.arrivals: list[float] = []
        self.samples = 0
        self.started = asyncio.Event()
        self.transport = FakeTransport(
            TransportParams(
                audio_in_enabled=True,
                audio_out_enabled=True,
                audio_out_end_silence_secs=0,
            ),
            self._hear,
        )
        playout = PlayoutMeter()
        voice = engine.voices[number % len(engine.voices)]
        self.service = PersonaPlexLLMService(
            engine,
            settings=PersonaPlexLLMService.Settings(
                voice=voice, system_instruction=f"You are number {number}.", seed=number
            ),
            playout=playout,
        )

        @self.service.event_handler("on_session_started")
        async def on_session_started(service: object, persona: object) -> None:
            self.started.set()

        strategies = ExternalUserTurnStrategies(enable_interruptions=False)
        aggregators = LLMContextAggregatorPair(
            LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=strategies)
        )
        self.worker = PipelineWorker(
            Pipeline(
                [
                    self.transport.input(),
                    aggregators.user(),
                    self.service,
                    self.transport.output(),
                    playout,
                    aggregators.assistant(),
                ]
            ),
            params=PipelineParams(
                audio_in_sample_rate=MIC_RATE,
                audio_out_sample_rate=24_000,
                enable_metrics=True,
                enable_usage_metrics=True,
            ),
        )
        random = np.random.default_rng(number)
        sound = random.normal(0, 2_000, (50, round(MIC_RATE * CHUNK))).astype(np.int16)
        self._sound = [chunk.tobytes() for chunk in sound]

    def _hear(self, now: float, audio: bytes) -> None:
        self.arrivals.append(now)
        self.samples += len(audio) // 2

    async def talk(self, until: float) -> None:
        await self.started.wait()
        await on_time(until, CHUNK, self._say)

    async def _say(self, index: int, late: float) -> None:
        await self.transport.say(self._sound[index % len(self._sound)], MIC_RATE)


async def on_time(
    until: float, period: float, act: Callable[[int, float], Awaitable[None]]
) -> None:
    """Act at every multiple of a period, on a clock that does not wait for the action."""
    begun = time.monotonic()
    index = 0
    while (due := begun + period * (index + 1)) < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await act(index, time.monotonic() - due)
        index += 1


@asynccontextmanager
async def running(caller: Caller) -> AsyncIterator[None]:
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(caller.worker)
    run = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        await caller.worker.cancel()
        await asyncio.wait_for(run, TIMEOUT)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """As the bots do: exclude imported modules from garbage collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class Load:
    """What a number of callers measured."""

    in_time: bool
    growth_mb: float
    lag_p99_ms: float


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS + 120)
async def test_callers_in_real_time() -> None:
    for callers in NUMBERS:
        load = await hold_calls(callers)
        assert load.growth_mb < 30
        if load.in_time:
            assert load.lag_p99_ms < 20
            return
    pytest.fail(f"{callers} callers are not in time")


async def hold_calls(number: int) -> Load:
    # So small a model is five times faster on one thread than on two that synchronise.
    config = EngineConfig(device="cpu", dtype="float32", max_sessions=number, cpu_threads=1)
    lags: list[float] = []
    resident: list[float] = []

    async def watch(index: int, late: float) -> None:
        lags.append(late * 1e3)

    async def weigh(index: int, late: float) -> None:
        resident.append(resident_mb())

    with Engine.load(CHECKPOINT, config) as engine:
        callers = [Caller(engine, index) for index in range(number)]
        async with AsyncExitStack() as stack:
            for caller in callers:
                await stack.enter_async_context(running(caller))
            for caller in callers:
                await asyncio.wait_for(caller.started.wait(), TIMEOUT)
            begun = time.monotonic()
            until = begun + SECONDS
            async with asyncio.TaskGroup() as tasks:
                for caller in callers:
                    tasks.create_task(caller.talk(until))
                tasks.create_task(on_time(until, 0.005, watch))
                tasks.create_task(on_time(until, 1.0, weigh))
            stats = engine.stats()
    assert engine.stats().sessions == 0
    late = stats.late_frames / stats.frames
    warm = [mb for second, mb in enumerate(resident) if second >= WARM_UP]
    growth = float(np.median(warm[-5:]) - np.median(warm[:5]))
    p50, p99 = np.percentile(lags, [50, 99])
    gaps = [np.diff(caller.arrivals).max() * 1e3 for caller in callers]
    print(
        f"\n{number} callers for {SECONDS:.0f} s: {stats.frames} frames, late {late:.2%}; "
        f"step p50 {stats.step_p50_ms:.1f} ms, p99 {stats.step_p99_ms:.1f}; "
        f"event-loop lag p50 {p50:.1f} ms, p99 {p99:.1f}, max {max(lags):.0f}; "
        f"memory {warm[0]:.0f} MB, {growth:+.1f} after warm-up; "
        f"longest gap at a caller's ear {max(gaps):.0f} ms"
    )
    # In a short run on a busy machine, one hiccup delays all callers and weighs more.
    late_bound = 0.01 if SECONDS >= 120 else 0.2
    in_time = stats.frames >= 0.98 * number * SECONDS / 0.08 and late <= late_bound
    return Load(in_time, growth, p99)
