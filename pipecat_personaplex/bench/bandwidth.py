"""Bytes a second of attention and of weights, against what a plain copy reaches here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipecat_personaplex.bench.calls import (
    Served,
    StepAttention,
    fill_rings,
    new_ring,
    noise_prefix,
    window_of,
)
from pipecat_personaplex.bench.options import BenchOptions
from pipecat_personaplex.bench.timing import device_seconds, release

# Larger than any cache, smaller than what a card has left beside a model.
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MLP_ROWS = (1, 8, 64)
_TIMES = 10

Say = Callable[[str], None]


def held_bytes(module: nn.Module) -> int:
    """Of a module's parameters and buffers, in whatever form they are kept."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large tensor's copy on the device, read and written ones counted."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source), _TIMES, device)


@torch.inference_mode()
def measure_bandwidth(
    served: Served, options: BenchOptions, copy: float, device: torch.device, say: Say
) -> dict[str, Any]:
    """Attention over full rings, and the gated MLPs, which hold most weights, at a few batch sizes.

    Args:
        served: The model.
        options: Its batch sizes are those of the attention.
        copy: The device's copy bandwidth, bytes a second.
        device: Where the model is.
        say: Takes lines for a person.
    """

    def entry(name: str, count: int, seconds: float) -> dict[str, float]:
        rate = count / seconds
        figures = {
            "ms": round(seconds * 1e3, 4),
            "bytes": count,
            "gb_s": round(rate / 1e9, 2),
            "percent_of_copy": round(100 * rate / copy, 1),
        }
        say(f"{name}: {figures['gb_s']:,.1f} GB/s, {figures['percent_of_copy']}% of copy")
        return figures

    report: dict[str, Any] = {"attention": {}, "mlp": {}}
    # On a CPU rings are read one after the other: more of them only take longer.
    small, large = min(options.sessions), max(options.sessions)
    for sessions in sorted({small} if device.type == "cpu" else {small, large}):
        seconds, count = _attention(served, sessions, device)
        name = f"attention over {sessions} full windows"
        report["attention"][str(sessions)] = entry(name, count, seconds)
        release(device)
    for rows in _MLP_ROWS:
        seconds, count = _mlp(served, rows, device)
        name = f"gated MLPs, {rows} rows"
        report["mlp"][str(rows)] = entry(name, count, seconds)
    return report


def _attention(served: Served, sessions: int, device: torch.device) -> tuple[float, int]:
    """Seconds of one step's attention in all layers, and the bytes of the rings it reads."""
    ring = new_ring(served, sessions, device)
    prefix = noise_prefix(served, 2 * window_of(served), device)
    attention = StepAttention(served, ring, fill_rings(ring, sessions, prefix), device)
    kv = attention.open()
    seconds = device_seconds(lambda: attention.attend(kv), _TIMES, device)
    return seconds, ring.nbytes


def _mlp(served: Served, rows: int, device: torch.device) -> tuple[float, int]:
    """Seconds of all layers' gated MLPs, one after the other, and the bytes of their weights.

    Taking turns keeps them out of the caches, as in a step; and they multiply the way they do
    there, whatever that is.
    """
    blocks = served.lm.transformer.layers
    layers = [block.get_submodule("gating") for block in blocks]
    x = torch.randn(rows, 1, served.config.lm.dim, device=device, dtype=served.lm.dtype)

    def call() -> None:
        for layer in layers:
            layer(x)

    seconds = device_seconds(call, _TIMES, device)
    return seconds, sum(held_bytes(layer) for layer in layers)
