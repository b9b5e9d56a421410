"""Batched top-k sampling on the device, with stateless noise.

Adding Gumbel noise to the k largest scaled logits and taking the largest sum samples from their
softmax. The noise of rank r in stream s at frame f is a hash of (seed, f, s, r). A session's
tokens therefore do not depend on its neighbours in the batch, and there is no generator state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.kernels.availability import probe, require_triton
from pipecat_personaplex.models.config import LMConfig

FIXED_CANDIDATES = 256
"""Candidates per stream where their number must not depend on the batch: in captured steps."""

_TEXT, _AUDIO = 0, 1
_MASK_32 = 0xFFFFFFFF
# Subtracted once per token id, so that equal logits rank by id. It is far below the distance of
# two different float32 logits and far above the rounding of float64.
_TIE_STEP = 1e-13
_MOST_SCALE = 1e30  # of logits; in effect greedy


def _mix(x: Tensor) -> Tensor:
    """Hash 32 bits (in int64): every input bit reaches every output bit."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK_32
    return x ^ (x >> 16)


def gumbel_noise(seeds: Tensor, frames: Tensor, streams: int, width: int) -> Tensor:
    """Standard Gumbel noise as a pure function of its arguments.

    Args:
        seeds: [B] int64.
        frames: [B] int64.
        streams: Streams that are sampled in a frame.
        width: Ranks per stream.

    Returns:
        float32 [B, streams, width].
    """
    low, high = seeds & _MASK_32, (seeds >> 32) & _MASK_32  # [B] each
    key = _mix(_mix(_mix(low) ^ high) ^ (frames & _MASK_32))[:, None, None]  # [B, 1, 1]
    stream = _mix(torch.arange(1, streams + 1, device=seeds.device))[:, None]  # [streams, 1]
    rank = torch.arange(width, device=seeds.device)  # [width]
    bits = _mix(_mix(key ^ stream) ^ rank)  # [B, streams, width]
    # 23 bits plus one half are exact in float32 and never 0 or 1, so both logarithms are finite.
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


class CandidateCounts(NamedTuple):
    """Candidates to rank for text and for each codebook; 0 means that every row is greedy."""

    text: int
    audio: int

    def covers(self, requested: CandidateCounts) -> bool:
        """Whether these counts are at least the requested ones."""
        return requested.text <= self.text and requested.audio <= self.audio

    def maximum(self, other: CandidateCounts) -> CandidateCounts:
        """The larger count of both, for text and for audio."""
        return CandidateCounts(max(self.text, other.text), max(self.audio, other.audio))


class SamplerState:
    """The sampling parameters of every slot, on the device and, for shapes, on the host.

    Args:
        slots: Number of slots.
        config: Gives the vocabulary sizes.
        device: Device of the parameters and of sampling.
        fused: Whether a kernel samples when the counts are ``fixed_counts``; see
            ``fused_sampling_works``.
    """

    def __init__(self, slots: int, config: LMConfig, device: torch.device, *, fused: bool = False):
        self._cards = CandidateCounts(config.text_card, config.card)
        self.fixed_counts = CandidateCounts(
            min(FIXED_CANDIDATES, config.text_card), min(FIXED_CANDIDATES, config.card)
        )
        self._fused = fused
        self._ties = torch.arange(max(self._cards), device=device, dtype=torch.float64) * _TIE_STEP
        self._requested = [CandidateCounts(0, 0)] * slots
        self._seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        # Each [slots, 2], for text and audio. A greedy row has unscaled logits and zero noise, so
        # rank 0 wins.
        self._scale = torch.ones(slots, 2, device=device)
        self._noise = torch.zeros(slots, 2, device=device)
        self._top_k = torch.ones(slots, 2, dtype=torch.int64, device=device)

    @classmethod
    def on(cls, device: torch.device, slots: int, config: LMConfig) -> SamplerState:
        """Make a state that uses the fused kernel if it works on ``device``."""
        cards = CandidateCounts(config.text_card, config.card)
        fused = device.type == "cuda" and fused_sampling_works(device, cards)
        return cls(slots, config, device, fused=fused)

    def set(self, slot: int, params: SamplingParams) -> None:
        """Set a slot's parameters from the next frame on."""
        self._seeds[slot] = params.seed
        requested = [0, 0]
        for kind, temperature, top_k in (
            (_TEXT, params.temperature_text, params.top_k_text),
            (_AUDIO, params.temperature_audio, params.top_k_audio),
        ):
            top_k = min(top_k, self._cards[kind])
            # Assigning a Python number is a fill, which does not wait for the device. A temperature
            # may be so small that float32 does not hold its inverse.
            scale = min(1 / temperature, _MOST_SCALE) if temperature else 1.0
            self._scale[slot, kind] = scale
            self._noise[slot, kind] = 1.0 if temperature else 0.0
            self._top_k[slot, kind] = top_k if temperature else 1
            requested[kind] = top_k if temperature else 0
        self._requested[slot] = CandidateCounts(*requested)

    def requested_counts(self, slots: Iterable[int]) -> CandidateCounts:
        """The largest number of candidates that these slots request, for text and for audio."""
        requested = CandidateCounts(0, 0)
        for slot in slots:
            requested = requested.maximum(self._requested[slot])
        return requested

    def frame(
        self, batch: Batch, frames: Tensor, counts: CandidateCounts | None = None
    ) -> FrameSampler:
        """Prepare to sample one frame.

        Args:
            batch: The slots to sample for.
            frames: Frame numbers that key the noise, [B] int64.
            counts: Candidates to rank, at least ``requested_counts`` of the batch; None ranks
                exactly these.
        """
        rows = batch.rows
        fused = self._fused and counts == self.fixed_counts
        if counts is None:
            counts = self.requested_counts(batch.slots)
        seeds, noise = self._seeds[rows], None  # [B]
        if max(counts) and not fused:
            noise = gumbel_noise(seeds, frames, 1 + CODEBOOKS, max(counts))
        return FrameSampler(
            counts=counts,
            seeds=seeds,
            frames=frames,
            scale=self._scale[rows],
            noise_scale=self._noise[rows],
            top_k=self._top_k[rows],
            noise=noise,
            ties=self._ties,
            fused=fused,
        )


@dataclass(frozen=True)
class FrameSampler:
    """Samples the text token and the eight agent codes of one frame.

    Attributes:
        counts: Candidates to rank.
        seeds: [B] int64.
        frames: [B] int64.
        scale: One over the temperature, [B, 2] float32, for text and audio.
        noise_scale: 1, or 0 for greedy rows, [B, 2] float32.
        top_k: Candidates of each row, [B, 2] int64.
        noise: Gumbel noise, [B, 9, max(counts)] float32; None if all rows are greedy or the
            kernel computes it.
        ties: Offset of every token id that orders equal logits, [vocabulary] float64.
        fused: Whether a kernel samples.
    """

    counts: CandidateCounts
    seeds: Tensor
    frames: Tensor
    scale: Tensor
    noise_scale: Tensor
    top_k: Tensor
    noise: Tensor | None
    ties: Tensor
    fused: bool = False

    def text(self, logits: Tensor) -> Tensor:
        """Floating-point [B, text_card] -> [B] int64."""
        return self._sample(logits, _TEXT, 0)

    def audio(self, codebook: int, logits: Tensor) -> Tensor:
        """Floating-point [B, card] -> [B] int64."""
        return self._sample(logits, _AUDIO, 1 + codebook)

    def _sample(self, logits: Tensor, kind: int, stream: int) -> Tensor:
        if self.fused:
            from pipecat_personaplex.kernels.topk_sampling import sample

            return sample(
                logits,
                seeds=self.seeds,
                frames=self.frames,
                stream=stream,
                scale=self.scale[:, kind],
                noise_scale=self.noise_scale[:, kind],
                top_k=self.top_k[:, kind],
                width=self.counts[kind],
            )
        # Equal logits, frequent in bfloat16, rank by token id: topk's own order may change with
        # the number of candidates, which a neighbour in the batch may raise.
        ranked = logits.double() - self.ties[: logits.shape[-1]]  # [B, card]
        count = self.counts[kind]
        if self.noise is None or count == 0:
            return ranked.argmax(dim=-1)
        best, tokens = ranked.topk(count, dim=-1)  # [B, count] each
        score = best.float() * self.scale[:, kind, None]
        score += self.noise[:, stream, :count] * self.noise_scale[:, kind, None]
        # A row with a smaller top-k than its neighbours ignores the ranks beyond its own.
        beyond = torch.arange(count, device=logits.device) >= self.top_k[:, kind, None]
        score.masked_fill_(beyond, -torch.inf)
        return tokens.gather(-1, score.argmax(dim=-1, keepdim=True))[:, 0]


def fused_sampling_works(device: torch.device, cards: CandidateCounts) -> bool:
    """Whether the kernel runs on ``device`` and samples the tokens that PyTorch samples.

    Args:
        device: A CUDA device, or a CPU with Triton's interpreter.
        cards: Sizes of the text vocabulary and of a codebook.
    """
    return probe(
        f"the sampling kernel for {cards.text:,} text tokens and {cards.audio:,} audio codes",
        device,
        partial(_check_fused_sampling, device, cards),
        fallback="PyTorch samples the tokens, with more launches",
    )


def _check_fused_sampling(device: torch.device, cards: CandidateCounts) -> None:
    """Compare the kernel with the PyTorch path on random logits.

    Raises:
        RuntimeError: The kernel does not support the vocabularies, or its tokens differ. Any other
            exception means that it does not compile or run.
    """
    require_triton()
    from pipecat_personaplex.kernels.topk_sampling import can_sample

    counts = CandidateCounts(*(min(FIXED_CANDIDATES, card) for card in cards))
    for card, count in zip(cards, counts, strict=True):
        if not can_sample(card, count):
            raise RuntimeError(f"the kernel cannot rank {count} of {card:,} logits")
    rows = 8
    row = torch.arange(rows, device=device)
    seeds, frames = row * 0x12345678901, 1000 * row
    greedy = (row % 4 == 0).float()[:, None].expand(rows, 2)
    top_k = 1 + row[:, None] * torch.tensor(counts, device=device) // rows  # each row another
    plain = FrameSampler(
        counts=counts,
        seeds=seeds,
        frames=frames,
        scale=torch.where(greedy > 0, 1.0, 1.25),
        noise_scale=1.0 - greedy,
        top_k=top_k,
        noise=gumbel_noise(seeds, frames, 1 + CODEBOOKS, max(counts)),
        ties=torch.arange(max(cards), device=device, dtype=torch.float64) * _TIE_STEP,
    )
    fused = replace(plain, fused=True)
    generator = torch.Generator().manual_seed(0)
    text, audio = (3 * torch.randn(rows, card, generator=generator).to(device) for card in cards)
    streams = [(text, plain.text, fused.text)]
    for codebook in range(CODEBOOKS):
        streams.append((audio, partial(plain.audio, codebook), partial(fused.audio, codebook)))
    for logits, expected, sampled in streams:
        # Also rounded to bfloat16, as a head's output is: many logits are then equal.
        for rounded in (logits, logits.bfloat16()):
            if not torch.equal(sampled(rounded), expected(rounded)):
                raise RuntimeError("its tokens differ from PyTorch's")
