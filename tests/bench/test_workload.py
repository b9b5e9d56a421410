"""The sessions that a bench times: how much of their rings is filled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipecat_personaplex.bench.measurements import BenchOptions, Fill
from pipecat_personaplex.bench.models import LoadedModel, load_model
from pipecat_personaplex.bench.workload import (
    new_ring,
    new_runner,
    noise_prefix,
    start_sessions,
    step_call,
)
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.model_runner import ModelRunner
from tests.golden_data import CHECKPOINT

CPU = torch.device("cpu")


def rings(runner: ModelRunner) -> list[RingCache]:
    step = runner.frame_step
    return [step.kv, step.codec._encoder_kv, step.codec._decoder_kv]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(str(CHECKPOINT), EngineConfig(device="cpu", dtype="float32"))


def test_full_windows_are_full(model: LoadedModel) -> None:
    window, codec_window = model.config.lm.window, model.config.mimi.window
    fill = Fill.of(BenchOptions("x", fill="full"), window, codec_window)
    assert fill.positions - fill.codec_frames > window
    runner = new_runner(model, 3)
    poison(runner)
    start_sessions(runner, 3, noise_prefix(model, fill.positions), fill)
    step = step_call(runner, 3)
    for _ in range(2):
        output: Any = step()
        assert output.finite.all() and output.pcm.isfinite().all()
    # Every index of every ring was written: no NaN is left.
    for ring in rings(runner):
        assert ring.keys[:, :3].isfinite().all() and ring.values[:, :3].isfinite().all()
    assert min(runner._host_prompt_frames[:3]) >= window
    # The rings of the sessions wrap in different steps.
    assert len({start % window for start in runner._host_prompt_frames[:3]}) == 3


def poison(runner: Any) -> None:
    """Fill the rings with NaN, to find reads of memory that was never written."""
    for ring in rings(runner):
        ring.keys.fill_(math.nan)
        ring.values.fill_(math.nan)


@pytest.mark.parametrize("frames", [1, 30])
def test_partly_filled_window(model: LoadedModel, frames: int) -> None:
    window, codec_window = model.config.lm.window, model.config.mimi.window
    fill = Fill.of(BenchOptions("x", fill=frames), window, codec_window)
    assert fill == Fill(frames, min(frames, 10))
    runner = new_runner(model, 1)
    poison(runner)
    start_sessions(runner, 1, noise_prefix(model, fill.positions), fill)
    output: Any = step_call(runner, 1)()
    assert output.finite.all()
    written = runner.frame_step.kv.keys[0, 0, 0].isfinite().all(dim=1)
    assert written.sum() == frames + 1


def test_attention_over_a_full_ring_reads_all_of_it(model: LoadedModel) -> None:
    ring = new_ring(model, 1)
    assert ring.nbytes == 47 * 2 * 3 * 64 * 4
    kv = ring.at(Batch.of([0], CPU), [94], torch.tensor([94]))
    [group] = kv._groups  # type: ignore[attr-defined]
    assert group.filled[-1] == slice(47)
