"""Samples follow the softmax of the top k, and their noise depends on its key only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipecat_personaplex import SamplingParams
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.sampling import SamplerState, gumbel_noise
from pipecat_personaplex.models.config import LMConfig

CPU = torch.device("cpu")
CARDS = LMConfig()


def sample_frames(params: SamplingParams, logits: torch.Tensor, frames: int) -> torch.Tensor:
    """One slot's text tokens, sampled from the same logits in many frames."""
    state = SamplerState(1, replace(CARDS, text_card=len(logits)), CPU)
    state.set(0, params)
    batch = Batch.of([0], CPU)
    return torch.cat(
        [state.frame(batch, torch.tensor([f])).text(logits[None]) for f in range(frames)]
    )


def test_samples_follow_the_softmax_of_the_top_k() -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    params = SamplingParams(seed=9, temperature_text=0.9, top_k_text=10)
    count = 4000
    sampled = torch.bincount(sample_frames(params, logits, count), minlength=60) / count
    best, tokens = logits.topk(10)
    expected = torch.zeros(60).scatter(0, tokens, (best / 0.9).softmax(dim=0))
    assert sampled[expected == 0].sum() == 0
    # Four standard deviations of a binomial proportion.
    bound = 4 * (expected * (1 - expected) / count).sqrt() + 1e-9
    assert (sampled - expected).abs().le(bound).all()


def test_a_greedy_row_takes_the_likeliest_token_alone_and_in_a_mixed_batch() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    state = SamplerState(3, CARDS, CPU)
    state.set(0, SamplingParams.greedy())
    state.set(1, SamplingParams(seed=4, temperature_text=5.0, top_k_text=50))
    state.set(2, SamplingParams(temperature_text=0.0, temperature_audio=1.0))
    mixed = state.frame(Batch.of([0, 1, 2], CPU), torch.zeros(3, dtype=torch.int64)).text(logits)
    assert mixed[0] == logits[0].argmax()
    assert mixed[2] == logits[2].argmax()
    alone = state.frame(Batch.of([0], CPU), torch.zeros(1, dtype=torch.int64)).text(logits[:1])
    assert alone[0] == mixed[0]


def test_a_row_samples_the_same_tokens_in_every_batch() -> None:
    logits = torch.randn(3, 2048, generator=torch.Generator().manual_seed(3))
    state = SamplerState(4, CARDS, CPU)
    for slot, top_k in enumerate((250, 7, 1000, 2048)):
        state.set(slot, SamplingParams(seed=slot, top_k_audio=top_k))
    frames = torch.tensor([5, 70, 3])
    together = state.frame(Batch.of([0, 2, 3], CPU), frames)
    for codebook in range(8):
        sampled = together.audio(codebook, logits)
        for row, slot in enumerate((0, 2, 3)):
            alone = state.frame(Batch.of([slot], CPU), frames[row : row + 1])
            assert alone.audio(codebook, logits[row : row + 1])[0] == sampled[row]


def test_equal_logits_rank_the_same_in_every_batch() -> None:
    # Few distinct values among 320 candidates, as in bfloat16.
    logits = torch.randn(2, 320, generator=torch.Generator().manual_seed(4)).round()
    state = SamplerState(2, CARDS, CPU)
    for wide in (26, 100, 300):
        state.set(1, SamplingParams(temperature_text=2.0, top_k_text=wide))
        for narrow in (SamplingParams.greedy(), SamplingParams(seed=1, top_k_text=25)):
            state.set(0, narrow)
            for frame in range(40):
                frames = torch.tensor([frame, frame])
                together = state.frame(Batch.of([0, 1], CPU), frames).text(logits)
                alone = state.frame(Batch.of([0], CPU), frames[:1]).text(logits[:1])
                assert together[0] == alone[0]


def test_a_top_k_larger_than_the_vocabulary_takes_every_token() -> None:
    sampled = sample_frames(
        SamplingParams(temperature_text=10.0, top_k_text=10_000), torch.zeros(16), frames=400
    )
    assert set(sampled.tolist()) == set(range(16))


@pytest.mark.parametrize("axis", ["seed", "high seed bits", "frame", "stream", "rank"])
def test_noise_is_standard_gumbel_and_independent_along_every_axis(axis: str) -> None:
    count = 20_000
    steps = torch.arange(count)
    zeros = torch.zeros(count, dtype=torch.int64)
    noise = {
        "seed": lambda: gumbel_noise(steps, zeros, 1, 1).flatten(),
        "high seed bits": lambda: gumbel_noise(steps << 32, zeros, 1, 1).flatten(),
        "frame": lambda: gumbel_noise(zeros, steps, 1, 1).flatten(),
        "stream": lambda: gumbel_noise(zeros[:1], zeros[:1], count, 1).flatten(),
        "rank": lambda: gumbel_noise(zeros[:1], zeros[:1], 1, count).flatten(),
    }[axis]()
    assert noise.isfinite().all()
    # The mean is Euler's constant, the variance pi^2 / 6, and neighbours are uncorrelated.
    assert abs(float(noise.mean()) - 0.5772) < 0.05
    assert abs(float(noise.var()) - np.pi**2 / 6) < 0.1
    correlation = np.corrcoef(noise[:-1].numpy(), noise[1:].numpy())[0, 1]
    assert abs(correlation) < 0.03


def test_noise_is_finite_for_extreme_seeds_and_frames() -> None:
    seeds = torch.tensor([0, 1, (1 << 63) - 1, 1 << 32])
    frames = torch.tensor([0, 1 << 40, 7, (1 << 31) + 5])
    assert gumbel_noise(seeds, frames, 9, 4096).isfinite().all()
