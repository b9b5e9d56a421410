"""The codec's streaming state of every slot."""

from __future__ import annotations

import torch
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME, Mimi

Starts = list[int] | None
"""Frames that each row of a batch has had, where the host knows it."""


class CodecSlots:
    """The codec's streaming state for a number of slots: convolutions, keys and values.

    Args:
        mimi: The codec.
        slots: How many.
        device: Where it runs.
        masked: As in ``RingCache``.
    """

    def __init__(self, mimi: Mimi, slots: int, device: torch.device, *, masked: bool = False):
        config = mimi.config
        self._mimi = mimi
        self._conv = mimi.new_state(slots)
        self._encoder_kv, self._decoder_kv = (
            RingCache(
                layers=config.num_layers,
                slots=slots,
                heads=config.num_heads,
                window=config.window,
                head_dim=config.dimension // config.num_heads,
                dtype=torch.float32,
                device=device,
                masked=masked,
            )
            for _ in range(2)
        )

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        rings = self._encoder_kv.nbytes + self._decoder_kv.nbytes
        return self._conv.nbytes + rings

    def encode(self, batch: Batch, pcm: Tensor, starts: Starts, frames: Tensor) -> Tensor:
        """[B, 1920] -> [B, 8]; ``starts`` and ``frames`` count the frames encoded before."""
        kv = self._open(self._encoder_kv, batch, starts, frames)
        return self._mimi.encode(pcm, self._conv, kv, frames, batch.rows)

    def decode(self, batch: Batch, codes: Tensor, starts: Starts, frames: Tensor) -> Tensor:
        """[B, 8] -> [B, 1920]; ``starts`` and ``frames`` count the frames decoded before."""
        kv = self._open(self._decoder_kv, batch, starts, frames)
        return self._mimi.decode(codes, self._conv, kv, frames, batch.rows)

    @staticmethod
    def _open(rings: RingCache, batch: Batch, starts: Starts, frames: Tensor) -> KVStore:
        places = None if starts is None else [LATENTS_PER_FRAME * start for start in starts]
        return rings.at(batch, places, LATENTS_PER_FRAME * frames, LATENTS_PER_FRAME)

    def start(self, slot: int, primed: CodecSlots) -> None:
        """Start a slot like slot 0 of ``primed``, which has decoded a frame and encoded none."""
        self._conv[slot] = primed._conv[0]
        self._encoder_kv.clear(slot)
        self._decoder_kv.clear(slot)
        past = slice(LATENTS_PER_FRAME)
        mine, theirs = self._decoder_kv, primed._decoder_kv
        mine.keys[:, slot, :, past] = theirs.keys[:, 0, :, past]
        mine.values[:, slot, :, past] = theirs.values[:, 0, :, past]

    def age(self, slot: int) -> None:
        """Fill a slot's rings with zeros, as if its call were long, for measurements."""
        config = self._mimi.config
        head_dim = config.dimension // config.num_heads
        zeros = self._conv.new_zeros(()).expand(
            config.num_layers, config.num_heads, config.window, head_dim
        )
        for ring in (self._encoder_kv, self._decoder_kv):
            ring.write(slot, 0, zeros, zeros)


def encode_stream(mimi: Mimi, pcm: Tensor) -> Tensor:
    """Encode a whole recording frame by frame from a fresh state.

    Args:
        mimi: The codec.
        pcm: float32 mono 24 kHz, a whole number of frames of 1,920 samples.

    Returns:
        Codes, [frames, 8] int64, on ``pcm``'s device.
    """
    codec = CodecSlots(mimi, 1, pcm.device)
    batch = Batch.of([0], pcm.device)
    with torch.inference_mode():
        return torch.cat(
            [
                codec.encode(batch, frame[None], [index], torch.tensor([index], device=pcm.device))
                for index, frame in enumerate(pcm.view(-1, FRAME_SAMPLES))
            ]
        )
