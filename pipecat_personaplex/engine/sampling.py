"""Batched top-k sampling on the device, with noise that depends on nothing but its key.

A draw adds Gumbel noise to the k best scaled logits and takes the largest sum, which is one draw
from their softmax. The noise of rank r in stream s at frame f is a hash of (seed, f, s, r): so a
session's tokens do not depend on who else is in the batch, and no generator state is kept.
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

FIXED_WIDTH = 256
"""Candidates a stream where the number may not depend on who is in the batch."""

_TEXT, _AUDIO = 0, 1
_MASK_32 = 0xFFFFFFFF
# Far below the distance of float32 logits that differ, far above float64's own rounding.
_TIE_STEP = 1e-13


def _mix(x: Tensor) -> Tensor:
    """Spread 32 bits (in int64) so that every input bit reaches every output bit."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK_32
    return x ^ (x >> 16)


def gumbel_noise(seeds: Tensor, frames: Tensor, streams: int, width: int) -> Tensor:
    """Standard Gumbel noise, a function of its arguments alone.

    Args:
        seeds: [B] int64.
        frames: [B] int64.
        streams: How many streams draw in a frame.
        width: Ranks a stream.

    Returns:
        float32 [B, streams, width].
    """
    low, high = seeds & _MASK_32, (seeds >> 32) & _MASK_32
    key = _mix(_mix(_mix(low) ^ high) ^ (frames & _MASK_32))[:, None, None]
    stream = _mix(torch.arange(1, streams + 1, device=seeds.device))[:, None]
    rank = torch.arange(width, device=seeds.device)
    bits = _mix(_mix(key ^ stream) ^ rank)
    # 23 bits and a half: exact in float32 and never 0 or 1.
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


class CandidateCounts(NamedTuple):
    """Candidates to rank in text and in each codebook; 0 says that every row is greedy."""

    text: int
    audio: int

    def hold(self, wanted: CandidateCounts) -> bool:
        """Whether these are enough for what is wanted."""
        return wanted.text <= self.text and wanted.audio <= self.audio

    def widened(self, wanted: CandidateCounts) -> CandidateCounts:
        """Enough for both."""
        return CandidateCounts(max(self.text, wanted.text), max(self.audio, wanted.audio))


class SamplerState:
    """Each slot's sampling parameters, on the device and (what shapes need) on the host.

    Args:
        slots: How many.
        config: For the cards.
        device: Where draws are made.
        fused: Whether draws of fixed widths are left to a kernel: see ``fused_sampling_works``.
    """

    def __init__(self, slots: int, config: LMConfig, device: torch.device, *, fused: bool = False):
        self._cards = CandidateCounts(config.text_card, config.card)
        self.fixed = CandidateCounts(
            min(FIXED_WIDTH, config.text_card), min(FIXED_WIDTH, config.card)
        )
        self._fused = fused
        self._ties = torch.arange(max(self._cards), device=device, dtype=torch.float64) * _TIE_STEP
        self._wanted = [CandidateCounts(0, 0)] * slots
        self._seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        # [slots, text or audio]. Greedy rows: logits unscaled and noise times zero, so that
        # rank 0 wins.
        self._scale = torch.ones(slots, 2, device=device)
        self._noise = torch.zeros(slots, 2, device=device)
        self._top_k = torch.ones(slots, 2, dtype=torch.int64, device=device)

    @classmethod
    def on(cls, device: torch.device, slots: int, config: LMConfig) -> SamplerState:
        """One that leaves to a kernel what the device has one for."""
        cards = CandidateCounts(config.text_card, config.card)
        fused = device.type == "cuda" and fused_sampling_works(device, cards)
        return cls(slots, config, device, fused=fused)

    def set(self, slot: int, params: SamplingParams) -> None:
        """Give a slot its parameters, from the next frame on."""
        self._seeds[slot] = params.seed
        wanted = [0, 0]
        for kind, temperature, top_k in (
            (_TEXT, params.temperature_text, params.top_k_text),
            (_AUDIO, params.temperature_audio, params.top_k_audio),
        ):
            top_k = min(top_k, self._cards[kind])
            # Each a fill, which no device waits for.
            self._scale[slot, kind] = 1 / temperature if temperature else 1.0
            self._noise[slot, kind] = 1.0 if temperature else 0.0
            self._top_k[slot, kind] = top_k if temperature else 1
            wanted[kind] = top_k if temperature else 0
        self._wanted[slot] = CandidateCounts(*wanted)

    def wanted(self, slots: Iterable[int]) -> CandidateCounts:
        """Candidates that the most demanding of ``slots`` asks for."""
        wanted = CandidateCounts(0, 0)
        for slot in slots:
            wanted = wanted.widened(self._wanted[slot])
        return wanted

    def frame(
        self, batch: Batch, frames: Tensor, widths: CandidateCounts | None = None
    ) -> FrameSampler:
        """Prepare one frame's draws.

        Args:
            batch: Who draws.
            frames: Keys the noise, [B] int64.
            widths: Candidates to rank, at least what ``wanted`` says; None ranks just as many.
        """
        rows = batch.rows
        fused = self._fused and widths == self.fixed
        if widths is None:
            widths = self.wanted(batch.slots)
        seeds, noise = self._seeds[rows], None
        if max(widths) and not fused:
            noise = gumbel_noise(seeds, frames, 1 + CODEBOOKS, max(widths))
        return FrameSampler(
            widths=widths,
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
    """The draws of one frame; ``fused`` leaves them to a kernel."""

    widths: CandidateCounts
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
        return self._draw(logits, _TEXT, 0)

    def audio(self, codebook: int, logits: Tensor) -> Tensor:
        """Floating-point [B, card] -> [B] int64."""
        return self._draw(logits, _AUDIO, 1 + codebook)

    def _draw(self, logits: Tensor, kind: int, stream: int) -> Tensor:
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
                width=self.widths[kind],
            )
        # Equal logits, frequent in bfloat16, are told apart by token: which of them comes first
        # must not depend on how many candidates a neighbour in the batch wants.
        ranked = logits.double() - self.ties[: logits.shape[-1]]
        width = self.widths[kind]
        if self.noise is None or width == 0:
            return ranked.argmax(dim=-1)
        best, tokens = ranked.topk(width, dim=-1)
        score = best.float() * self.scale[:, kind, None]
        score += self.noise[:, stream, :width] * self.noise_scale[:, kind, None]
        beyond = torch.arange(width, device=logits.device) >= self.top_k[:, kind, None]
        score.masked_fill_(beyond, -torch.inf)
        return tokens.gather(-1, score.argmax(dim=-1, keepdim=True))[:, 0]


def fused_sampling_works(device: torch.device, cards: CandidateCounts) -> bool:
    """Whether the kernel runs on ``device`` and samples the tokens that PyTorch samples.

    Args:
        device: Where.
        cards: Sizes of the text and the audio vocabulary.
    """
    return probe(
        f"the sampling kernel for {cards.text:,} text tokens and {cards.audio:,} audio codes",
        device,
        partial(_check_fused_sampling, device, cards),
        fallback="PyTorch samples the tokens, with more launches",
    )


def _check_fused_sampling(device: torch.device, cards: CandidateCounts) -> None:
    """Compare the kernel's tokens with PyTorch's, for text and for every codebook.

    Raises:
        RuntimeError: The kernel does not support the vocabularies, or its tokens differ. Any other
            exception means that it does not run.
    """
    require_triton()
    from pipecat_personaplex.kernels.topk_sampling import can_sample

    widths = CandidateCounts(*(min(FIXED_WIDTH, card) for card in cards))
    for card, width in zip(cards, widths, strict=True):
        if not can_sample(card, width):
            raise RuntimeError(f"it cannot rank {width} of {card:,} logits")
    rows = 8
    row = torch.arange(rows, device=device)
    seeds, frames = row * 0x12345678901, 1000 * row
    greedy = (row % 4 == 0).float()[:, None].expand(rows, 2)
    top_k = 1 + row[:, None] * torch.tensor(widths, device=device) // rows
    plain = FrameSampler(
        widths=widths,
        seeds=seeds,
        frames=frames,
        scale=torch.where(greedy > 0, 1.0, 1.25),
        noise_scale=1.0 - greedy,
        top_k=top_k,
        noise=gumbel_noise(seeds, frames, 1 + CODEBOOKS, max(widths)),
        ties=torch.arange(max(cards), device=device, dtype=torch.float64) * _TIE_STEP,
    )
    fused = replace(plain, fused=True)
    generator = torch.Generator().manual_seed(0)
    text, audio = (3 * torch.randn(rows, card, generator=generator).to(device) for card in cards)
    comparisons = [(text, plain.text, fused.text)]
    for codebook in range(CODEBOOKS):
        comparisons.append((audio, partial(plain.audio, codebook), partial(fused.audio, codebook)))
    for logits, expected, sampled in comparisons:
        # The heads' bfloat16 output has many equal logits, whose order must agree as well.
        for given in (logits, logits.bfloat16()):
            if not torch.equal(sampled(given), expected(given)):
                raise RuntimeError("its tokens differ from PyTorch's")
