"""The codec, one 80 ms frame at a time, for a batch of slots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.attention import (
    KVStore,
    RotaryCosSin,
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

LATENTS_PER_FRAME = 2


class CodecLayer(nn.Module):
    """LayerNorm, attention and GELU MLP, each branch scaled by feature."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = SelfAttention(dim, num_heads)
        self.scale1 = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)
        self.scale2 = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor, kv: KVStore, layer: int, turn: RotaryCosSin | None) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = _add_scaled(x, self.scale1, self.self_attn(self.norm1(x), kv, layer, turn))
        return _add_scaled(x, self.scale2, self.linear2(F.gelu(self.linear1(self.norm2(x)))))


def _add_scaled(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """``x + scale * y`` in one launch; a CPU is faster with two."""
    return x + scale * y if x.is_cpu else torch.addcmul(x, scale, y)


class CodecTransformer(nn.Module):
    """Layers over latents at 25 Hz."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            CodecLayer(config.dimension, config.num_heads, config.dim_feedforward)
            for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, kv: KVStore, turn: RotaryCosSin | None) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        for index, layer in enumerate(self.layers):
            x = layer(x, kv, index, turn)
        return x


class Mimi(nn.Module):
    """Mimi's encoder, quantiser and decoder, all in float32, so that codes match."""

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
        self._encoder_size, self._state_size = accumulate(
            sum(map(math.prod, shapes)) for shapes in (self._encoder_shapes, self._decoder_shapes)
        )
        self.reset_constants("cpu")

    def reset_constants(self, device: torch.device | str) -> None:
        """Make what the checkpoint does not hold, once its tensors are in place."""
        head_dim = self.config.dimension // self.config.num_heads
        self.register_buffer(
            "frequencies",
            rotary_frequencies(head_dim, self.config.max_period, torch.device(device)),
            persistent=False,
        )
        self.quantizer.semantic.reset_constants()
        self.quantizer.acoustic.reset_constants()

    def new_state(self, slots: int) -> Tensor:
        """The convolutions' state for fresh streams, [slots, size]; keys and values are beside."""
        return self.frequencies.new_zeros(slots, self._state_size)

    def rotation(self, frames: Tensor) -> RotaryCosSin:
        """Rotary angles of the frames' two latents: ``frames`` [B] counts from 0."""
        pair = torch.arange(LATENTS_PER_FRAME, device=frames.device)
        return rotation(frames[:, None] * LATENTS_PER_FRAME + pair, self.frequencies)

    def encode(self, pcm: Tensor, state: Tensor, kv: KVStore, frames: Tensor, rows: Rows) -> Tensor:
        """Encode one frame of each stream.

        Args:
            pcm: float32 [B, 1920], 24 kHz.
            state: See ``new_state``.
            kv: The encoder transformer's keys and values.
            frames: How many frames each stream has encoded before, [B] int64.
            rows: The slots that B names.

        Returns:
            Codes, [B, 8] int64, semantic first.
        """
        convs = state[:, : self._encoder_size]
        with _states(convs, rows, self._encoder_shapes) as (*seanet, downsample):
            x = self.encoder(pcm[..., None], seanet)
            x = self.encoder_transformer(x, kv, offer_rotation(self.rotation(frames), kv))
            x = self.downsample(x, downsample, frames == 0)
        return self.quantizer.encode(x[:, 0])

    def decode(
        self, codes: Tensor, state: Tensor, kv: KVStore, frames: Tensor, rows: Rows
    ) -> Tensor:
        """Decode one frame of each stream.

        Args:
            codes: [B, 8] int64.
            state: See ``new_state``.
            kv: The decoder transformer's keys and values.
            frames: How many frames each stream has decoded before, [B] int64.
            rows: The slots that B names.

        Returns:
            Audio, float32 [B, 1920].
        """
        x = self.quantizer.decode(codes)[:, None]
        convs = state[:, self._encoder_size :]
        with _states(convs, rows, self._decoder_shapes) as (upsample, *seanet):
            x = self.upsample(x, upsample)
            x = self.decoder_transformer(x, kv, offer_rotation(self.rotation(frames), kv))
            y: Tensor = self.decoder(x, seanet)
        return y[..., 0]


@contextmanager
def _states(storage: Tensor, rows: Rows, shapes: list[StateShape]) -> Iterator[list[Tensor]]:
    """Each convolution's state in some rows: views, or copies that are put back together."""
    mine = storage[rows]
    parts = torch.split(mine, [math.prod(shape) for shape in shapes], dim=1)
    yield [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    if isinstance(rows, Tensor):
        storage[rows] = mine
