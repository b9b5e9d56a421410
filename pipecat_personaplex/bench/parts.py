"""One step taken apart: what each part takes, and what reading its bytes once would."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pipecat_personaplex.bench.calls import (
    Served,
    StepAttention,
    batch_of,
    fill_rings,
    new_ring,
    noise_prefix,
    window_of,
)
from pipecat_personaplex.bench.options import BenchOptions, Fill
from pipecat_personaplex.bench.timing import device_seconds, release
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.engine.codec_slots import CodecSlots
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME

ATTENTION = "of it attention"
"""The name of the part that the temporal transformer holds."""

_TIMES = 10
# Of the codec's and the language model's parameters, by name. Embeddings are looked up, not read.
_ENCODE = re.compile(r"encoder|downsample|quantizer.*(centroids|distance_bias|input_proj)")
_DECODE = re.compile(r"decoder|upsample|quantizer.*output_proj")
_TEMPORAL = re.compile(r"transformer|out_norm")
_DEPTH = re.compile(r"text_linear|depth\.(?!emb|text_emb)")

Say = Callable[[str], None]
Call = Callable[[], object]


def measure_parts(
    served: Served,
    options: BenchOptions,
    fill: Fill,
    copy: float,
    device: torch.device,
    say: Say,
) -> dict[str, Any]:
    """For each number of callers: encode, temporal transformer, text and depth, decode.

    The attention is part of the temporal transformer, and timed once more by itself.

    Args:
        served: The model.
        options: For its batch sizes.
        fill: How old the calls are.
        copy: The device's copy bandwidth, bytes a second.
        device: Where the model is.
        say: Takes lines for a person.
    """
    report: dict[str, Any] = {}
    for count in options.sessions:
        rows: dict[str, Any] = {}
        report[str(count)] = rows
        for name, call, read in _parts(served, count, fill, device):
            seconds = device_seconds(call, min(_TIMES, options.frames), device)
            milliseconds, limit = seconds * 1e3, read / copy * 1e3
            percent = 100 * limit / milliseconds
            rows[name] = {
                "ms": round(milliseconds, 4),
                "bytes": read,
                "limit_ms": round(limit, 4),
                "percent_of_limit": round(percent, 1),
            }
            say(
                f"{count:4d} sessions   {name:14} {milliseconds:9.3f} ms   reads "
                f"{read / 1e6:9,.1f} MB   limit {limit:9.3f} ms ({percent:.0f}%)"
            )
        release(device)
    return report


def bytes_read(module: nn.Module, names: re.Pattern[str]) -> int:
    """Of parameters and buffers whose names begin so."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return sum(t.numel() * t.element_size() for name, t in tensors if names.match(name))


@torch.inference_mode()
def _parts(
    served: Served, count: int, fill: Fill, device: torch.device
) -> Iterator[tuple[str, Call, int]]:
    """Name, call and bytes read of each part, for ``count`` callers at the same place."""
    config, lm, mimi = served.config, served.lm, served.mimi
    batch = batch_of(count, device)
    said, frames = [fill.said] * count, torch.full((count,), fill.said, device=device)
    codec = CodecSlots(mimi, count, device)
    for slot in range(count):
        codec.fill_with_zeros(slot)
    latents = min(LATENTS_PER_FRAME * (fill.said + 1), config.mimi.window)
    codec_ring = 2 * config.mimi.num_layers * latents * config.mimi.dimension * 4 * count
    pcm = torch.zeros(count, FRAME_SAMPLES, device=device)
    codes = torch.zeros(count, CODEBOOKS, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def encode() -> object:
        return codec.encode(batch, pcm, said, frames)

    @torch.inference_mode()
    def decode() -> object:
        return codec.decode(batch, codes, said, frames)

    ring = new_ring(served, count, device)
    starts = fill_rings(ring, count, noise_prefix(served, fill.positions, device))
    positions = torch.tensor(starts, device=device)
    column = initial_column(config).repeat(count, 1).to(device)
    ring_read = ring.nbytes * min(fill.positions + 1, window_of(served)) // window_of(served)

    @torch.inference_mode()
    def temporal() -> object:
        kv = ring.at(batch, starts, positions)
        return lm(lm.embed(column)[:, None], positions[:, None], kv)

    step = StepAttention(served, ring, starts, device)

    @torch.inference_mode()
    def attention() -> None:
        step.attend(step.open())

    sampler = SamplerState.on(device, count, config.lm)
    for slot in range(count):
        sampler.set(slot, SamplingParams(seed=slot))
    # As a captured step ranks them.
    widths = sampler.fixed_counts if device.type == "cuda" else None
    hidden = torch.randn(count, config.lm.dim, device=device, dtype=lm.dtype)

    @torch.inference_mode()
    def text_and_depth() -> object:
        draw = sampler.frame(batch, frames, widths)
        return lm.depth(hidden, draw.text(lm.text_logits(hidden)), draw.audio)

    yield "encode", encode, bytes_read(mimi, _ENCODE) + codec_ring
    yield "temporal", temporal, bytes_read(lm, _TEMPORAL) + ring_read
    yield ATTENTION, attention, ring_read
    yield "text and depth", text_and_depth, bytes_read(lm, _DEPTH)
    yield "decode", decode, bytes_read(mimi, _DECODE) + codec_ring
