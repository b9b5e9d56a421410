"""The kernel draws the tokens that the plain path draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from loguru import logger

from pipecat_personaplex import SamplingParams
from pipecat_personaplex.engine import sampling
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.sampling import CandidateCounts, FrameSampler, SamplerState
from pipecat_personaplex.models.config import LMConfig

pytest.importorskip("triton")

from pipecat_personaplex.kernels import topk_sampling as kernels
from pipecat_personaplex.kernels.topk_sampling import can_draw

CPU = torch.device("cpu")

SESSIONS = [
    SamplingParams(seed=0, temperature_text=10.0),
    SamplingParams(seed=(1 << 63) - 1, temperature_audio=10.0, top_k_audio=1_000),
    SamplingParams.greedy(),
    SamplingParams(seed=1 << 40, temperature_audio=1.5, top_k_audio=7, top_k_text=500),
    SamplingParams(seed=5, temperature_audio=0.3, top_k_audio=1, temperature_text=2.0),
]


def frame_sampler(card: int, frames: list[int], text_card: int = 100) -> FrameSampler:
    """Of five slots in another order than their rows."""
    state = SamplerState(6, replace(LMConfig(), card=card, text_card=text_card), CPU)
    slots = [0, 1, 3, 4, 5]
    for slot, params in zip(slots, SESSIONS, strict=True):
        state.set(slot, params)
    return state.frame(Batch.of(slots, CPU), torch.tensor(frames), state.fixed_counts)


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes seconds to sort what a GPU sorts in microseconds."""
    monkeypatch.setattr(sampling, "FIXED_CANDIDATES", 16)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("card", [16, 40])
@pytest.mark.parametrize("kind", ["distinct", "equal", "signed zeros", "bfloat16"])
def test_the_kernel_draws_what_the_plain_path_draws(card: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(card)
    for codebook in (0, 3, 7):
        plain = frame_sampler(card, [0, 7, 1 << 33, 12, 100 + codebook])
        logits = 3 * torch.randn(5, card, generator=generator)
        if kind == "equal":
            logits = logits.round()
        elif kind == "signed zeros":
            logits = torch.where(logits > 0, 0.0, -0.0)
        elif kind == "bfloat16":
            logits = logits.bfloat16()
        drawn = replace(plain, fused=True).audio(codebook, logits)
        assert drawn.dtype == torch.int64
        assert drawn.tolist() == plain.audio(codebook, logits.float()).tolist()


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("card", [97, 257])
@pytest.mark.parametrize("kind", ["distinct", "equal", "bfloat16", "infinite"])
def test_a_large_vocabulary_is_shortlisted_first(
    card: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MAX_SORTED", 96)
    monkeypatch.setattr(kernels, "PART", 64)
    logits = 3 * torch.randn(5, card, generator=torch.Generator().manual_seed(card))
    if kind == "equal":
        logits = logits.round()
    elif kind == "bfloat16":
        logits = logits.bfloat16()
    elif kind == "infinite":
        logits[:, card // 2 :] = -torch.inf
        logits[:, card - 1] = 4.0
    plain = frame_sampler(40, [0, 7, 1 << 33, 12, 100], text_card=card)
    drawn = replace(plain, fused=True).text(logits)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == plain.text(logits.float()).tolist()


def test_at_the_size_of_blocks_on_a_gpu() -> None:
    """One row: the interpreter takes a second to sort 2,048 logits."""
    generator = torch.Generator().manual_seed(0)
    plain = frame_sampler(2_048, [3, 4, 5, 6, 7], text_card=4_500)
    names = ("seeds", "frames", "scale", "noise_scale", "top_k", "noise")
    one = replace(plain, **{name: getattr(plain, name)[1:2] for name in names})
    fused = replace(one, fused=True)
    codes, text = (3 * torch.randn(1, card, generator=generator) for card in (2_048, 4_500))
    assert torch.equal(fused.audio(2, codes), one.audio(2, codes))
    assert torch.equal(fused.text(text), one.text(text))


def test_what_one_program_cannot_sort_is_refused() -> None:
    assert can_draw(32_000, 256) and can_draw(4_096, 256) and can_draw(100_000, 64)
    assert not can_draw(32_769, 256) and not can_draw(32_000, 257)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("shortlisted", [False, True])
def test_a_row_that_is_not_finite_draws_a_token_and_disturbs_no_other(
    shortlisted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shortlisted:
        monkeypatch.setattr(kernels, "MAX_SORTED", 64)
        monkeypatch.setattr(kernels, "PART", 32)
    plain = frame_sampler(40, [0, 1, 2, 3, 4])
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    expected = plain.text(logits)
    for bad in (torch.nan, torch.inf, -torch.inf):
        logits[1] = bad
        drawn = replace(plain, fused=True).text(logits)
        assert 0 <= int(drawn[1]) < 100
        assert drawn[[0, 2, 3, 4]].tolist() == expected[[0, 2, 3, 4]].tolist()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    sampling.fused_sampling_works.cache_clear()
    yield said
    sampling.fused_sampling_works.cache_clear()
    logger.remove(sink)


@pytest.mark.usefixtures("few_candidates")
def test_the_kernel_passes_its_check(warnings: list[str]) -> None:
    assert sampling.fused_sampling_works(CPU, CandidateCounts(40, 16))
    assert warnings == []


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("wrong", ["raises", "differs", "card"])
def test_a_kernel_that_fails_its_check_is_left_out_with_one_warning(
    wrong: str, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(logits: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if wrong == "raises":
            raise RuntimeError("no such instruction\nand a long dump")
        return torch.zeros(len(logits), dtype=torch.int64)

    monkeypatch.setattr(kernels, "draw", draw)
    for _ in range(2):
        assert not sampling.fused_sampling_works(
            CPU, CandidateCounts(600_000 if wrong == "card" else 40, 16)
        )
    reason = {
        "raises": "RuntimeError: no such instruction",
        "differs": "RuntimeError: its tokens differ from those of the PyTorch path",
        "card": "RuntimeError: it cannot rank 16 of 600,000 logits",
    }[wrong]
    assert warnings == [f"tokens are sampled without the fused kernel, more slowly: {reason}\n"]


def test_widths_say_what_a_batch_wants() -> None:
    state = SamplerState(3, LMConfig(), CPU)
    assert state.requested_counts([0, 1, 2]) == CandidateCounts(0, 0)
    state.set(0, SamplingParams())
    state.set(1, SamplingParams(top_k_text=300, temperature_audio=0))
    assert state.requested_counts([0]) == CandidateCounts(25, 250)
    assert state.requested_counts([1]) == CandidateCounts(300, 0)
    assert state.requested_counts([0, 1]) == CandidateCounts(300, 250)
    assert state.fixed_counts.covers(state.requested_counts([0]))
    assert not state.fixed_counts.covers(state.requested_counts([0, 1]))
    assert state.fixed_counts.maximum(state.requested_counts([1])) == CandidateCounts(300, 256)
