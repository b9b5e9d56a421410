"""The calls that a bench times: how old they are, what they read, and when they are late."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from loguru import logger

from pipecat_personaplex.bench import steps
from pipecat_personaplex.bench.bandwidth import held_bytes
from pipecat_personaplex.bench.calls import (
    Served,
    load_served,
    new_ring,
    new_runner,
    noise_prefix,
    start,
    stepping,
)
from pipecat_personaplex.bench.options import BenchOptions, Fill
from pipecat_personaplex.bench.parts import _DECODE, _DEPTH, _ENCODE, _TEMPORAL, bytes_read
from pipecat_personaplex.bench.timing import device_seconds
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.batch import Batch
from tests.golden_data import CHECKPOINT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def served() -> Served:
    return load_served(str(CHECKPOINT), EngineConfig(device="cpu", dtype="float32"))


def test_full_windows_are_full(served: Served) -> None:
    window, codec_window = served.config.lm.window, served.config.mimi.window
    fill = Fill.of(BenchOptions("x", fill="full"), window, codec_window)
    assert fill.positions - fill.said > window
    runner = new_runner(served, 3, CPU)
    poison(runner)
    start(runner, 3, noise_prefix(served, fill.positions, CPU), fill)
    step = stepping(runner, 3)
    for _ in range(2):
        output: Any = step()
        assert output.finite.all() and output.pcm.isfinite().all()
    # Every place of every ring had been written: what was in memory before shows nowhere.
    state = runner.frame_step
    for ring in (state.kv, state.codec._encoder_kv, state.codec._decoder_kv):
        assert ring.keys[:, :3].isfinite().all() and ring.values[:, :3].isfinite().all()
    assert min(runner._host_prompt_frames[:3]) >= window
    # The calls' rings go round at different times.
    assert len({start % window for start in runner._host_prompt_frames[:3]}) == 3


def rings(runner: Any) -> list[Any]:
    step = runner.frame_step
    return [step.kv, step.codec._encoder_kv, step.codec._decoder_kv]


def poison(runner: Any) -> None:
    state = runner.frame_step
    for ring in (state.kv, state.codec._encoder_kv, state.codec._decoder_kv):
        ring.keys.fill_(math.nan)
        ring.values.fill_(math.nan)


@pytest.mark.parametrize("frames", [1, 30])
def test_a_part_of_the_window(served: Served, frames: int) -> None:
    window, codec_window = served.config.lm.window, served.config.mimi.window
    fill = Fill.of(BenchOptions("x", fill=frames), window, codec_window)
    assert fill == Fill(frames, min(frames, 10))
    runner = new_runner(served, 1, CPU)
    poison(runner)
    start(runner, 1, noise_prefix(served, fill.positions, CPU), fill)
    output: Any = stepping(runner, 1)()
    assert output.finite.all()
    written = runner.frame_step.kv.keys[0, 0, 0].isfinite().all(dim=1)
    assert written.sum() == frames + 1


def test_attention_over_full_rings_reads_all_of_them(served: Served) -> None:
    ring = new_ring(served, 1, CPU)
    assert ring.nbytes == 47 * 2 * 3 * 64 * 4
    kv = ring.at(Batch.of([0], CPU), [94], torch.tensor([94]))
    assert kv._rings[0].filled == 47  # type: ignore[attr-defined]


def test_parts_read_every_weight_but_embeddings_once(served: Served) -> None:
    lm, mimi = served.lm, served.mimi
    embeddings = sum(
        held_bytes(module) for module in lm.modules() if isinstance(module, torch.nn.Embedding)
    )
    constants = lm.frequencies.nbytes + lm.audio_offsets.nbytes
    read = bytes_read(lm, _TEMPORAL) + bytes_read(lm, _DEPTH)
    assert read == held_bytes(lm) - embeddings - constants
    assert bytes_read(mimi, _ENCODE) + bytes_read(mimi, _DECODE) == (
        held_bytes(mimi) - mimi.frequencies.nbytes
    )


def test_a_slow_step_makes_the_next_ones_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return clock[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            clock[0] += seconds

    durations = iter([0.02, 0.2, 0.02, 0.02, 0.02])

    def step() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr(steps, "time", Clock)
    report, seconds = steps.soak(step, 5 * 0.08 / 60, CPU)
    # Arrivals at 0, 80, 160, 240, 320; answers at 20, 280, 300, 320, 340.
    assert (report["steps"], report["late"]) == (5, 2)
    assert report["max_ms"] == 200 and report["p50_ms"] == 80
    assert seconds == pytest.approx([0.02, 0.2, 0.02, 0.02, 0.02])


class FakeEvent:
    """A moment on a device whose clock is the number of calls."""

    calls = 0

    def record(self) -> None:
        self.at = FakeEvent.calls

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.at - self.at)


class FakeGraph:
    def replay(self) -> None:
        FakeEvent.calls += 3


@pytest.mark.parametrize("captures", [True, False])
def test_a_part_that_cannot_be_captured_is_timed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    streams = ["the thread's own"]

    @contextmanager
    def graph(_: FakeGraph) -> Iterator[None]:
        before, streams[0] = streams[0], "the capture's"
        yield
        if not captures:  # and PyTorch leaves the thread where it is
            raise RuntimeError("operation not permitted when stream is capturing")
        streams[0] = before

    def call() -> None:
        FakeEvent.calls += 5

    for name, stand_in in (
        ("device", lambda device: nullcontext()),
        ("synchronize", lambda: None),
        ("CUDAGraph", FakeGraph),
        ("graph", graph),
        ("current_stream", lambda: streams[0]),
        ("set_stream", lambda stream: streams.__setitem__(0, stream)),
        ("Event", lambda enable_timing: FakeEvent()),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING", format="{message}")
    seconds = device_seconds(call, 4, torch.device("cuda"))
    logger.remove(sink)
    assert seconds == (0.003 if captures else 0.005)
    assert streams == ["the thread's own"]
    assert ["not permitted" in line for line in warnings] == ([] if captures else [True])
