"""The Mimi codec: one 80 ms frame at a time, for a batch of slots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.models.attention import (
    KVStore,
    SelfAttention,
    offer_rotation,
    rotary_frequencies,
    rotation,
)
from pipecat_personaplex.models.config import MimiConfig
from pipecat_personaplex.models.layers import Rows
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.mimi.conv import Downsample, Upsample
from pipecat_personaplex.models.mimi.quantizer import SplitQuantizer
from pipecat_personaplex.models.mimi.seanet import Decoder, Encoder, StateShape
from pipecat_personaplex.models.module import Module

LATENTS_PER_FRAME = 2
"""Positions of the codec's transformers in a frame: they run at 25 Hz, frames at 12.5 Hz."""


class CodecLayer(Module):
    """Attention and GELU MLP, each after a LayerNorm and with a learned scale for each feature."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = SelfAttention(dim, num_heads)
        self.scale1 = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)
        self.scale2 = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor, kv: KVStore, layer: int, rotary: RotaryCosSin | None) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = _add_scaled(x, self.scale1, self.self_attn(self.norm1(x), kv, layer, rotary))
        return _add_scaled(x, self.scale2, self.linear2(F.gelu(self.linear1(self.norm2(x)))))


def _add_scaled(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """``x + scale * y``: one launch on a GPU; on a CPU, two operations are faster."""
    return x + scale * y if x.is_cpu else torch.addcmul(x, scale, y)


class CodecTransformer(Module):
    """Transformer over latents at 25 Hz."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            CodecLayer(config.dimension, config.num_heads, config.dim_feedforward)
            for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, kv: KVStore, rotary: RotaryCosSin | None) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        for index, layer in enumerate(self.layers):
            x = layer(x, kv, index, rotary)
        return x


class Mimi(Module):
    """Mimi's encoder, quantiser and decoder, in float32, so that codes equal the reference's."""

    frequencies: Tensor

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.encoder_transformer = CodecTransformer(config)
        self.downsample = Downsample(config.dimension)
        self.quantizer = SplitQuantizer(config.bins, config.codebook_dim, config.dimension)
        self.upsample = Upsample(config.dimension)
        self.decoder_transformer = CodecTransformer(config)
        self.decoder = Decoder(config)
        self._encoder_shapes: list[StateShape] = [
            *self.encoder.state_shapes,
            self.downsample.conv.state_shape,
        ]
        self._decoder_shapes: list[StateShape] = [
            self.upsample.state_shape,
            *self.decoder.state_shapes,
        ]
        # Numbers of state per slot: of the encoder's convolutions, and of all convolutions.
        self._encoder_size, self._state_size = accumulate(
            sum(map(math.prod, shapes)) for shapes in (self._encoder_shapes, self._decoder_shapes)
        )
        self.reset_constants("cpu")

    def reset_constants(self, device: torch.device | str) -> None:
        """Create the constants that a checkpoint does not contain, once its weights are loaded."""
        head_dim = self.config.dimension // self.config.num_heads
        self.register_buffer(
            "frequencies",
            rotary_frequencies(head_dim, self.config.max_period, torch.device(device)),
            persistent=False,
        )
        self.quantizer.semantic.reset_constants()
        self.quantizer.acoustic.reset_constants()

    def new_state(self, slots: int) -> Tensor:
        """Convolution state of new streams, float32 [slots, size]. Keys and values are separate."""
        return self.frequencies.new_zeros(slots, self._state_size)

    def rotation(self, frames: Tensor) -> RotaryCosSin:
        """Rotary angles of the two latents of frames [B] int64, counted from 0."""
        pair = torch.arange(LATENTS_PER_FRAME, device=frames.device)
        return rotation(frames[:, None] * LATENTS_PER_FRAME + pair, self.frequencies)

    def encode(self, pcm: Tensor, state: Tensor, kv: KVStore, frames: Tensor, rows: Rows) -> Tensor:
        """Encode one frame of each stream.

        Args:
            pcm: Samples, float32 [B, 1920] at 24 kHz.
            state: State of all slots, from ``new_state``; updated in place.
            kv: The encoder transformer's keys and values.
            frames: Number of frames that each stream has encoded before, [B] int64.
            rows: The slots of the B rows.

        Returns:
            Codes, [B, 8] int64, the semantic code first.
        """
        convs = state[:, : self._encoder_size]
        with _states(convs, rows, self._encoder_shapes) as (*seanet, downsample):
            x = self.encoder(pcm[..., None], seanet)  # [B, 1920, 1] -> [B, 2, dim]
            x = self.encoder_transformer(x, kv, offer_rotation(self.rotation(frames), kv))
            x = self.downsample(x, downsample, frames == 0)  # -> [B, 1, dim]
        return self.quantizer.encode(x[:, 0])

    def decode(
        self, codes: Tensor, state: Tensor, kv: KVStore, frames: Tensor, rows: Rows
    ) -> Tensor:
        """Decode one frame of each stream.

        Args:
            codes: [B, 8] int64.
            state: State of all slots, from ``new_state``; updated in place.
            kv: The decoder transformer's keys and values.
            frames: Number of frames that each stream has decoded before, [B] int64.
            rows: The slots of the B rows.

        Returns:
            Samples, float32 [B, 1920] at 24 kHz.
        """
        x = self.quantizer.decode(codes)[:, None]  # [B, 1, dim]
        convs = state[:, self._encoder_size :]
        with _states(convs, rows, self._decoder_shapes) as (upsample, *seanet):
            x = self.upsample(x, upsample)  # -> [B, 2, dim]
            x = self.decoder_transformer(x, kv, offer_rotation(self.rotation(frames), kv))
            y: Tensor = self.decoder(x, seanet)  # -> [B, 1920, 1]
        return y[..., 0]


@contextmanager
def _states(storage: Tensor, rows: Rows, shapes: list[StateShape]) -> Iterator[list[Tensor]]:
    """Each convolution's state of some slots, [B, *shape].

    For consecutive slots these are views of ``storage``; for others, copies that are written back
    at the end.
    """
    selected = storage[rows]
    parts = torch.split(selected, [math.prod(shape) for shape in shapes], dim=1)
    yield [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    if isinstance(rows, Tensor):
        storage[rows] = selected
