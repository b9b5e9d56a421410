"""The codec's forward pass for training: whole excerpts, with the engine's modules.

``models.mimi`` streams frame by frame. Here the same parameters run as ordinary convolutions over
[B, C, T]; a test compares the two. An excerpt starts as a stream does, with zeros before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.models.attention import rotation
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME, CodecTransformer, Mimi
from pipecat_personaplex.models.mimi.conv import CausalConv, CausalConvTranspose, Downsample
from pipecat_personaplex.models.mimi.quantizer import ResidualQuantizer
from pipecat_personaplex.models.mimi.seanet import Decoder, Encoder, ResidualBlock


class CausalAttention:
    """Causal attention over a whole excerpt, in place of a stream's KV cache.

    Args:
        window: Positions that a stream's ring holds.
        step: Positions that a stream writes at a time. The last of them overwrites an old position
            that the first of them then no longer attends to.
    """

    def __init__(self, window: int, step: int = 1):
        self._window, self._step = window, step

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; q, k, v and the result are [B, H, T, D]. The layer does not matter here."""
        steps = q.shape[2]
        if steps <= self._window:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys = torch.arange(steps, device=q.device)
        queries = keys[:, None]
        written = queries - queries % self._step + self._step - 1
        mask = (keys <= queries) & (keys > written - self._window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _conv(layer: CausalConv, x: Tensor, first: Tensor | None = None) -> Tensor:
    weight = layer.taps.weight.view(len(layer.taps.weight), layer.kernel, -1).transpose(1, 2)
    carry = layer.kernel - layer.stride
    x = F.pad(x, (carry, 0)) if first is None else torch.cat((first, x), dim=2)
    if layer.stride > 1 and torch.is_autocast_enabled(x.device.type):
        # In bfloat16 with AMX, oneDNN takes wrong weights for a kernel of 16 with stride 8.
        with torch.autocast(x.device.type, enabled=False):
            return F.conv1d(x.float(), weight, layer.bias, stride=layer.stride)
    return F.conv1d(x, weight, layer.bias, stride=layer.stride)


def _upconv(layer: CausalConvTranspose, x: Tensor) -> Tensor:
    weight = layer.taps.weight.view(2 * layer.stride, layer.out_channels, -1).permute(2, 1, 0)
    return F.conv_transpose1d(x, weight, layer.bias, stride=layer.stride)[..., : -layer.stride]


def _block(block: ResidualBlock, x: Tensor) -> Tensor:
    return x + _conv(block.widen, F.elu(_conv(block.narrow, F.elu(x))))


def _encoder(encoder: Encoder, x: Tensor) -> Tensor:
    x = _conv(encoder.first, x)
    for block, down in zip(encoder.blocks, encoder.downs, strict=True):
        assert isinstance(block, ResidualBlock) and isinstance(down, CausalConv)
        x = _conv(down, F.elu(_block(block, x)))
    return _conv(encoder.last, F.elu(x))


def _decoder(decoder: Decoder, x: Tensor) -> Tensor:
    x = _conv(decoder.first, x)
    for up, block in zip(decoder.ups, decoder.blocks, strict=True):
        assert isinstance(block, ResidualBlock) and isinstance(up, CausalConvTranspose)
        x = _block(block, _upconv(up, F.elu(x)))
    return _conv(decoder.last, F.elu(x))


def _transformer(mimi: Mimi, side: CodecTransformer, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[2], device=x.device)[None].expand(len(x), -1)
    rotary = rotation(positions, mimi.frequencies)
    y: Tensor = side(
        x.transpose(1, 2), CausalAttention(mimi.config.window, LATENTS_PER_FRAME), rotary
    )
    return y.transpose(1, 2)


def _downsample(layer: Downsample, x: Tensor) -> Tensor:
    carry = layer.conv.kernel - layer.conv.stride
    return _conv(layer.conv, x, first=x[:, :, :1].expand(-1, -1, carry))


def encode_latents(mimi: Mimi, pcm: Tensor) -> Tensor:
    """[B, frames * 1920] -> latents before the quantiser, [B, frames, dim]."""
    assert pcm.shape[1] % FRAME_SAMPLES == 0, "whole frames"
    x = _encoder(mimi.encoder, pcm[:, None])
    x = _transformer(mimi, mimi.encoder_transformer, x)
    return _downsample(mimi.downsample, x).transpose(1, 2)


def decode_latents(mimi: Mimi, latents: Tensor) -> Tensor:
    """Latents [B, frames, dim], quantised or not -> audio [B, frames * 1920]."""
    taps = mimi.upsample.weight.T[:, None]
    x = F.conv_transpose1d(
        latents.transpose(1, 2), taps, stride=LATENTS_PER_FRAME, groups=len(taps)
    )[..., :-LATENTS_PER_FRAME]
    x = _transformer(mimi, mimi.decoder_transformer, x)
    return _decoder(mimi.decoder, x)[:, 0]


class Quantized(NamedTuple):
    """The output of a group of codebooks.

    Attributes:
        values: [..., latent_dim], after the output projection, with straight-through gradients.
        inner: The sum of centroids before that projection, with gradients to the centroids.
        codes: [..., codebooks] int64.
        loss: Squared distance of inputs and centroids, relative to the inputs' variance.
        residuals: Input of each codebook, detached, [codebooks, ..., dim].
    """

    values: Tensor
    inner: Tensor
    codes: Tensor
    loss: Tensor
    residuals: Tensor


def quantize(group: ResidualQuantizer, latents: Tensor, commitment: float = 0.25) -> Quantized:
    """Quantise latents [..., latent_dim] with gradients to encoder and centroids."""
    target = F.linear(latents, group.input_proj)
    residual, total = target, torch.zeros_like(target)
    loss = target.new_zeros(())
    codes, residuals = [], []
    for centroids in group.centroids:
        with torch.no_grad():
            flat = residual.detach().flatten(0, -2)
            # argmin |x - c|^2 = argmax x.c - |c|^2 / 2
            offset = -0.5 * centroids.square().sum(dim=-1)
            code = torch.addmm(offset, flat, centroids.T).argmax(dim=-1).view(residual.shape[:-1])
        chosen = F.embedding(code, centroids)
        loss = loss + F.mse_loss(chosen, residual.detach())
        loss = loss + commitment * F.mse_loss(residual, chosen.detach())
        residuals.append(residual.detach())
        residual, total = residual - chosen.detach(), total + chosen
        codes.append(code)
    straight = target + (total - target).detach()
    return Quantized(
        F.linear(straight, group.output_proj),
        total,
        torch.stack(codes, dim=-1),
        loss / (len(codes) * target.detach().var() + 1e-6),
        torch.stack(residuals),
    )
