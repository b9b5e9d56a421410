"""The device under test, and sessions of the golden checkpoint on it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES, STREAMS
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.models.delay_pattern import prompt_columns

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINT = GOLDEN / "tiny-personaplex"
CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("PERSONAPLEX_TEST_DEVICE", "cuda:0"))
ON_CUDA = DEVICE.type == "cuda"

needs_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]


@cache
def checkpoint(device: torch.device, dtype: torch.dtype) -> Checkpoint:
    return load_checkpoint(CHECKPOINT, device=device, dtype=dtype, quantization=None)


def new_runner(dtype: torch.dtype, slots: int, graphs: bool) -> ModelRunner:
    loaded = checkpoint(DEVICE, dtype)
    runner = ModelRunner(loaded.config, loaded.lm, loaded.mimi, slots, DEVICE, fixed=True)
    if graphs:
        capture(runner)
        assert runner.captured, "steps were not captured; the log says why"
    return runner


def capture(runner: ModelRunner) -> None:
    if ON_CUDA:
        runner.capture()
        return
    from tests.helpers.recording import RecordingCapturer

    runner.capture(RecordingCapturer())


@cache
def prefix(dtype: torch.dtype, seed: int = 0) -> Prefix:
    """The state after a prompt of random tokens."""
    loaded = checkpoint(DEVICE, dtype)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 320, (40 + seed, STREAMS), generator=generator)
    prompt = Prompt(("test", (seed,)), prompt_columns(tokens, loaded.config), None)
    after = Prefill(loaded.lm, prompt, DEVICE).advance(prompt.frames)
    assert after is not None
    return after


def noise(frames: int, rows: int, seed: int = 0) -> Tensor:
    """A caller's audio: float32 [frames, rows, 1920]."""
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (frames, rows, FRAME_SAMPLES))
    return torch.from_numpy(samples.astype(np.float32))


def stepped(runner: ModelRunner, slots: list[int], pcm: Tensor) -> list[list[int]]:
    """Step one frame; return the 17 tokens of each row."""
    output = runner.step(Batch.of(slots, CPU), pcm)
    assert output.finite.all()
    assert output.pcm.isfinite().all()
    return output.tokens().tolist()


def params(seed: int) -> SamplingParams:
    """Different kinds of sampling that graphs support."""
    return [
        SamplingParams(seed=seed),
        SamplingParams.greedy(),
        SamplingParams(seed=seed, temperature_audio=1.2, top_k_audio=40, temperature_text=0),
        SamplingParams(seed=seed, top_k_text=256, top_k_audio=256),
    ][seed % 4]
