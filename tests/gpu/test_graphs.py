"""A replayed graph says what the step says that was captured, whoever comes and goes."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.sampling import CandidateCounts, SamplerState, fused_sampling_works
from pipecat_personaplex.models.config import LMConfig
from tests.gpu.machine import (
    CPU,
    DEVICE,
    ON_CUDA,
    needs_device,
    new_runner,
    noise,
    params,
    prefix,
    stepped,
)

pytestmark = needs_device

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("sessions", [1, 3, 7, 12])
def test_a_graph_says_what_the_step_says_token_for_token(dtype: torch.dtype, sessions: int) -> None:
    """Twelve is a batch of its own size, three and seven are filled up."""
    said = []
    for graphs in (False, True):
        runner = new_runner(dtype, 12, graphs)
        for slot in range(sessions):
            runner.join(slot, prefix(dtype, slot % 3), params(slot))
        audio = noise(120, sessions)
        said.append([stepped(runner, list(range(sessions)), pcm) for pcm in audio])
    assert said[0] == said[1]


@DTYPES
def test_sessions_join_and_leave_while_graphs_replay(dtype: torch.dtype) -> None:
    """Over 300 frames, with slots used again, new sampling in a call, and text that is given."""
    said = []
    for graphs in (False, True):
        runner = new_runner(dtype, 12, graphs)
        generator = torch.Generator().manual_seed(5)
        live: list[int] = []
        tokens = []
        for tick, pcm in enumerate(noise(300, 12)):
            action = int(torch.randint(0, 10, (1,), generator=generator))
            if (action < 3 and len(live) < 12) or not live:
                slot = min(set(range(12)) - set(live))
                runner.join(slot, prefix(dtype, tick % 3), params(tick))
                live = sorted([*live, slot])
            elif action == 3 and len(live) > 1:
                live.pop(tick % len(live))
            elif action == 4:
                runner.set_sampling(live[-1], params(tick + 1))
            forced = torch.full((len(live),), -1)
            forced[tick % len(live)] = 7 if action == 5 else -1
            output = runner.step(Batch.of(live, CPU), pcm[: len(live)], forced)
            assert output.finite.all()
            tokens.append(output.tokens().tolist())
        said.append(tokens)
    assert said[0] == said[1]


@DTYPES
def test_a_session_beyond_the_graphs_width_shares_their_state(dtype: torch.dtype) -> None:
    """Its frames are stepped without a graph, between replays for its neighbour alone."""
    said = []
    for graphs in (False, True):
        runner = new_runner(dtype, 2, graphs)
        runner.join(0, prefix(dtype), SamplingParams(seed=1))
        runner.join(1, prefix(dtype, 1), SamplingParams(seed=2, top_k_text=300, top_k_audio=700))
        said.append(
            [
                stepped(runner, [0, 1] if tick % 3 else [0], pcm[: 2 if tick % 3 else 1])
                for tick, pcm in enumerate(noise(90, 2))
            ]
        )
    assert said[0] == said[1]


def test_what_nobody_owns_may_be_nan(dtype: torch.dtype = torch.bfloat16) -> None:
    said = []
    for poisoned in (False, True):
        runner = new_runner(dtype, 8, graphs=True)
        for slot in range(5):
            runner.join(slot, prefix(dtype), params(slot))
        tokens = []
        for pcm in noise(40, 5):
            if poisoned:
                runner._codec._conv[8] = torch.nan
                runner._kv.values[:, 8] = torch.nan
            tokens.append(stepped(runner, list(range(5)), pcm))
        said.append(tokens)
    assert said[0] == said[1]


@pytest.mark.skipif(not ON_CUDA, reason="the kernel is for CUDA")
def test_tokens_are_drawn_by_the_kernel_as_by_the_plain_path() -> None:
    """At the model's size, thousands of rows; nearly all: sums may be rounded in another order."""
    assert fused_sampling_works(DEVICE, CandidateCounts(32_000, 2_048))
    kernel, plain = (SamplerState(64, LMConfig(), DEVICE, fused=fused) for fused in (True, False))
    for slot in range(64):
        kernel.set(slot, params(slot))
        plain.set(slot, params(slot))
    batch = Batch.of(range(64), DEVICE)
    generator = torch.Generator().manual_seed(0)
    differing = 0
    for frame in range(20):
        frames = torch.arange(64, device=DEVICE) + 1_000 * frame
        fused = kernel.frame(batch, frames, kernel.fixed)
        assert fused.fused
        expected = plain.frame(batch, frames, plain.fixed)
        for codebook in range(8):
            logits = 3 * torch.randn(64, 2_048, generator=generator).to(DEVICE)
            if frame % 2:
                logits = logits.bfloat16()
            tokens = expected.audio(codebook, logits.float())
            differing += int((fused.audio(codebook, logits) != tokens).sum())
        logits = 3 * torch.randn(64, 32_000, generator=generator).to(DEVICE)
        differing += int((fused.text(logits) != expected.text(logits)).sum())
    assert differing <= 2
