"""Batched top-k sampling on the device, with noise that depends on nothing but its key.

A draw adds Gumbel noise to the k best scaled logits and takes the largest sum, which is one draw
from their softmax. The noise of rank r in stream s at frame f is a hash of (seed, f, s, r): so a
session's tokens do not depend on who else is in the batch, and no generator state is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipecat_personaplex.architecture import LMConfig
from pipecat_personaplex.config import CODEBOOKS, SamplingParams
from pipecat_personaplex.engine.kv_cache import Batch

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


class SamplerState:
    """Each slot's sampling parameters, on the device and (what shapes need) on the host."""

    def __init__(self, slots: int, config: LMConfig, device: torch.device):
        self._cards = (config.text_card, config.card)
        self._ties = torch.arange(max(self._cards), device=device, dtype=torch.float64) * _TIE_STEP
        self._params = [SamplingParams()] * slots
        self._seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        # [slots, text or audio]. Greedy rows: logits unscaled and noise times zero, so that
        # rank 0 wins.
        self._scale = torch.ones(slots, 2, device=device)
        self._noise = torch.zeros(slots, 2, device=device)
        self._top_k = torch.ones(slots, 2, dtype=torch.int64, device=device)

    def set(self, slot: int, params: SamplingParams) -> None:
        """Give a slot its parameters, from the next frame on."""
        top_k = [
            min(wanted, card)
            for wanted, card in zip(
                (params.top_k_text, params.top_k_audio), self._cards, strict=True
            )
        ]
        params = replace(params, top_k_text=top_k[_TEXT], top_k_audio=top_k[_AUDIO])
        self._params[slot] = params
        self._seeds[slot] = params.seed
        temperatures = (params.temperature_text, params.temperature_audio)
        self._scale[slot] = torch.tensor([1 / t if t else 1.0 for t in temperatures])
        self._noise[slot] = torch.tensor([1.0 if t else 0.0 for t in temperatures])
        self._top_k[slot] = torch.tensor(top_k)

    def frame(self, batch: Batch, frames: Tensor) -> FrameSampler:
        """Prepare one frame's draws for ``batch``; ``frames`` [B] int64 keys the noise."""
        params = [self._params[slot] for slot in batch.slots]
        text = max((p.top_k_text for p in params if p.temperature_text), default=0)
        audio = max((p.top_k_audio for p in params if p.temperature_audio), default=0)
        rows = batch.rows
        noise = None
        if text or audio:
            noise = gumbel_noise(self._seeds[rows], frames, 1 + CODEBOOKS, max(text, audio))
        return FrameSampler(
            text_width=text,
            audio_width=audio,
            scale=self._scale[rows],
            noise_scale=self._noise[rows],
            top_k=self._top_k[rows],
            noise=noise,
            ties=self._ties,
        )


@dataclass(frozen=True)
class FrameSampler:
    """The draws of one frame; a width of 0 says that every row is greedy."""

    text_width: int
    audio_width: int
    scale: Tensor
    noise_scale: Tensor
    top_k: Tensor
    noise: Tensor | None
    ties: Tensor

    def text(self, logits: Tensor) -> Tensor:
        """float32 [B, text_card] -> [B] int64."""
        return self._draw(logits, _TEXT, 0, self.text_width)

    def audio(self, codebook: int, logits: Tensor) -> Tensor:
        """float32 [B, card] -> [B] int64."""
        return self._draw(logits, _AUDIO, 1 + codebook, self.audio_width)

    def _draw(self, logits: Tensor, kind: int, stream: int, width: int) -> Tensor:
        # Equal logits, frequent in bfloat16, are told apart by token: which of them comes first
        # must not depend on how many candidates a neighbour in the batch wants.
        ranked = logits.double() - self.ties[: logits.shape[-1]]
        if self.noise is None or width == 0:
            return ranked.argmax(dim=-1)
        best, tokens = ranked.topk(width, dim=-1)
        score = best.float() * self.scale[:, kind, None]
        score += self.noise[:, stream, :width] * self.noise_scale[:, kind, None]
        beyond = torch.arange(width, device=logits.device) >= self.top_k[:, kind, None]
        score.masked_fill_(beyond, -torch.inf)
        return tokens.gather(-1, score.argmax(dim=-1, keepdim=True))[:, 0]
