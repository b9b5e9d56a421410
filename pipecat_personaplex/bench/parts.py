"""The parts of one step: the time of each, and the time that reading its bytes once would take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pipecat_personaplex.bench.measurements import BenchOptions, Echo, Fill
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.bench.timing import device_seconds, free_memory
from pipecat_personaplex.bench.workload import (
    StepAttention,
    fill_rings,
    first_slots,
    new_ring,
    noise_prefix,
)
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.engine.codec_slots import CodecSlots
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME

ATTENTION = "of which attention"
"""Report name of the attention, which is also included in the temporal transformer."""

_TIMES = 10
# Names of the parameters that each part reads. Embeddings are looked up row by row, not read.
_ENCODE = re.compile(r"encoder|downsample|quantizer.*(centroids|distance_bias|input_proj)")
_DECODE = re.compile(r"decoder|upsample|quantizer.*output_proj")
_TEMPORAL = re.compile(r"transformer|out_norm")
_DEPTH = re.compile(r"text_linear|depth\.(?!emb|text_emb)")

Part = tuple[str, Callable[[], object], int]
"""Name, call to time, and bytes that the call reads."""


def measure_parts(
    model: LoadedModel, options: BenchOptions, fill: Fill, bandwidth: float, echo: Echo
) -> dict[str, Any]:
    """Time encode, temporal transformer, text and depth, and decode for each batch size.

    The attention is included in the temporal transformer, and is also timed by itself.

    Args:
        model: The model.
        options: Give the batch sizes.
        fill: How far into their calls the sessions are.
        bandwidth: Read bandwidth of the device, bytes per second.
        echo: Prints one line of results.
    """
    report: dict[str, Any] = {}
    for count in options.sessions:
        rows: dict[str, Any] = {}
        report[str(count)] = rows
        for name, call, read in _parts(model, count, fill):
            seconds = device_seconds(call, min(_TIMES, options.frames), model.device)
            milliseconds, limit = seconds * 1e3, read / bandwidth * 1e3
            percent = 100 * limit / milliseconds
            rows[name] = {
                "ms": round(milliseconds, 4),
                "bytes": read,
                "limit_ms": round(limit, 4),
                "percent_of_limit": round(percent, 1),
            }
            echo(
                f"{count:4d} sessions   {name:18} {milliseconds:9.3f} ms   reads "
                f"{read / 1e6:9,.1f} MB   limit {limit:9.3f} ms ({percent:.0f}%)"
            )
        free_memory(model.device)
    return report


def bytes_read(module: nn.Module, names: re.Pattern[str]) -> int:
    """Return the bytes of the parameters and buffers whose names match from the start."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return sum(t.numel() * t.element_size() for name, t in tensors if names.match(name))


@torch.inference_mode()
def _parts(model: LoadedModel, count: int, fill: Fill) -> Iterator[Part]:
    """Yield the parts of a step of ``count`` sessions that are equally far into their calls."""
    config, lm, mimi, device = model.config, model.lm, model.mimi, model.device
    batch = first_slots(count, device)

    # Codec: rings as after codec_frames frames, two latents (40 ms) for each.
    starts = [fill.codec_frames] * count
    frames = torch.full((count,), fill.codec_frames, device=device)  # [B]
    codec = CodecSlots(mimi, count, device)
    for slot in range(count):
        codec.fill_with_zeros(slot)
    latents = min(LATENTS_PER_FRAME * (fill.codec_frames + 1), config.mimi.window)
    # Keys and values, float32 (4 bytes), in every layer.
    codec_ring = 2 * config.mimi.num_layers * latents * config.mimi.dimension * 4 * count
    pcm = torch.zeros(count, FRAME_SAMPLES, device=device)  # [B, 1920]
    codes = torch.zeros(count, CODEBOOKS, dtype=torch.int64, device=device)  # [B, 8]

    @torch.inference_mode()
    def encode() -> object:
        return codec.encode(batch, pcm, starts, frames)

    @torch.inference_mode()
    def decode() -> object:
        return codec.decode(batch, codes, starts, frames)

    # Temporal transformer: one column of tokens over rings as after fill.positions frames.
    ring = new_ring(model, count)
    lm_starts = fill_rings(ring, count, noise_prefix(model, fill.positions))
    positions = torch.tensor(lm_starts, device=device)  # [B]
    column = initial_column(config).repeat(count, 1).to(device)  # [B, 17]
    ring_read = ring.nbytes * min(fill.positions + 1, model.window) // model.window

    @torch.inference_mode()
    def temporal() -> object:
        kv = ring.at(batch, lm_starts, positions)
        return lm(lm.embed(column)[:, None], positions[:, None], kv)

    step_attention = StepAttention(model, ring, lm_starts)

    @torch.inference_mode()
    def attention() -> None:
        step_attention.attend(step_attention.open())

    # Text and depth: from the hidden state [B, dim] to a text token and 8 audio codes.
    sampler = SamplerState.on(device, count, config.lm)
    for slot in range(count):
        sampler.set(slot, SamplingParams(seed=slot))
    # A captured step ranks a fixed number of candidates.
    candidates = sampler.fixed_counts if device.type == "cuda" else None
    hidden = torch.randn(count, config.lm.dim, device=device, dtype=lm.dtype)

    @torch.inference_mode()
    def text_and_depth() -> object:
        sample = sampler.frame(batch, frames, candidates)
        return lm.depth(hidden, sample.text(lm.text_logits(hidden)), sample.audio)

    yield "encode", encode, bytes_read(mimi, _ENCODE) + codec_ring
    yield "temporal", temporal, bytes_read(lm, _TEMPORAL) + ring_read
    yield ATTENTION, attention, ring_read
    yield "text and depth", text_and_depth, bytes_read(lm, _DEPTH)
    yield "decode", decode, bytes_read(mimi, _DECODE) + codec_ring
