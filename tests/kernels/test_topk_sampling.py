"""The sampling kernel samples the tokens that the PyTorch path samples."""

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

from pipecat_personaplex.kernels import availability
from pipecat_personaplex.kernels import topk_sampling as kernels
from pipecat_personaplex.kernels.topk_sampling import can_sample

CPU = torch.device("cpu")

SESSIONS = [
    SamplingParams(seed=0, temperature_text=10.0),
    SamplingParams(seed=(1 << 63) - 1, temperature_audio=10.0, top_k_audio=1_000),
    SamplingParams.greedy(),
    SamplingParams(seed=1 << 40, temperature_audio=1.5, top_k_audio=7, top_k_text=500),
    SamplingParams(seed=5, temperature_audio=0.3, top_k_audio=1, temperature_text=2.0),
]


def frame_sampler(card: int, frames: list[int], text_card: int = 100) -> FrameSampler:
    """The sampler of a frame of five slots, which are not consecutive."""
    state = SamplerState(6, replace(LMConfig(), card=card, text_card=text_card), CPU)
    slots = [0, 1, 3, 4, 5]
    for slot, params in zip(slots, SESSIONS, strict=True):
        state.set(slot, params)
    return state.frame(Batch.of(slots, CPU), torch.tensor(frames), state.fixed_counts)


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sort fewer candidates: the interpreter takes seconds for what a GPU sorts in microseconds."""
    monkeypatch.setattr(sampling, "FIXED_CANDIDATES", 16)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("card", [16, 40])
@pytest.mark.parametrize("kind", ["distinct", "equal", "signed zeros", "bfloat16"])
def test_kernel_samples_the_same_tokens(card: int, kind: str) -> None:
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
        sampled = replace(plain, fused=True).audio(codebook, logits)
        assert sampled.dtype == torch.int64
        assert sampled.tolist() == plain.audio(codebook, logits.float()).tolist()


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("card", [97, 257])
@pytest.mark.parametrize("kind", ["distinct", "equal", "bfloat16", "infinite"])
def test_large_vocabularies_are_shortlisted(
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
    sampled = replace(plain, fused=True).text(logits)
    assert sampled.dtype == torch.int64
    assert sampled.tolist() == plain.text(logits.float()).tolist()


def test_blocks_of_the_size_on_a_gpu() -> None:
    """One row: the interpreter takes a second to sort 2,048 logits."""
    generator = torch.Generator().manual_seed(0)
    plain = frame_sampler(2_048, [3, 4, 5, 6, 7], text_card=4_500)
    names = ("seeds", "frames", "scale", "noise_scale", "top_k", "noise")
    one = replace(plain, **{name: getattr(plain, name)[1:2] for name in names})
    fused = replace(one, fused=True)
    codes, text = (3 * torch.randn(1, card, generator=generator) for card in (2_048, 4_500))
    assert torch.equal(fused.audio(2, codes), one.audio(2, codes))
    assert torch.equal(fused.text(text), one.text(text))


def test_can_sample_is_false_beyond_one_programs_limit() -> None:
    assert can_sample(32_000, 256) and can_sample(4_096, 256) and can_sample(100_000, 64)
    assert not can_sample(32_769, 256) and not can_sample(32_000, 257)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("shortlisted", [False, True])
def test_non_finite_rows_yield_a_token_and_affect_no_other_row(
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
        sampled = replace(plain, fused=True).text(logits)
        assert 0 <= int(sampled[1]) < 100
        assert sampled[[0, 2, 3, 4]].tolist() == expected[[0, 2, 3, 4]].tolist()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(availability, "_results", {})
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


@pytest.mark.usefixtures("few_candidates")
def test_kernel_passes_its_check(warnings: list[str]) -> None:
    assert sampling.fused_sampling_works(CPU, CandidateCounts(40, 16))
    assert warnings == []


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("wrong", ["raises", "differs", "card"])
def test_a_kernel_that_fails_its_check_is_not_used_and_logged_once(
    wrong: str, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(logits: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if wrong == "raises":
            raise RuntimeError("no such instruction\nand a long dump")
        return torch.zeros(len(logits), dtype=torch.int64)

    monkeypatch.setattr(kernels, "sample", sample)
    for _ in range(2):
        assert not sampling.fused_sampling_works(
            CPU, CandidateCounts(600_000 if wrong == "card" else 40, 16)
        )
    reason = {
        "raises": "RuntimeError: no such instruction and a long dump",
        "differs": "RuntimeError: its tokens differ from PyTorch's",
        "card": "RuntimeError: the kernel cannot rank 16 of 600,000 logits",
    }[wrong]
    text_card = "600,000" if wrong == "card" else "40"
    assert warnings == [
        f"the sampling kernel for {text_card} text tokens and 16 audio codes is not available on "
        f"cpu: {reason}; PyTorch samples the tokens, with more launches\n"
    ]


def test_candidate_counts_of_a_batch() -> None:
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
