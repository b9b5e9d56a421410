"""Memory bandwidth of attention and of the weights, relative to reading memory on this device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipecat_personaplex.bench.measurements import BenchOptions, Echo
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.bench.timing import device_seconds, free_memory
from pipecat_personaplex.bench.workload import StepAttention, fill_rings, new_ring, noise_prefix

# Larger than any cache, smaller than the memory that a model leaves free on a card.
_READ_BYTES = {"cpu": 512 << 20, "cuda": 1 << 30}
_MLP_ROWS = (1, 8, 64)
_TIMES = 10


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, in the format they are stored in."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of summing a large tensor on the device.

    A step reads its weights, keys and values and writes almost nothing: reading is its limit, and
    on many processors faster than copying.
    """
    source = torch.ones(_READ_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    return source.nbytes / device_seconds(source.sum, _TIMES, device)


@torch.inference_mode()
def measure_bandwidth(
    model: LoadedModel, options: BenchOptions, read: float, echo: Echo
) -> dict[str, Any]:
    """Measure attention over full rings, and the gated MLPs, which hold most weights.

    Args:
        model: The model.
        options: Give the batch sizes of the attention.
        read: Read bandwidth of the device, bytes per second.
        echo: Prints one line of results.
    """

    def entry(name: str, count: int, seconds: float) -> dict[str, float]:
        rate = count / seconds
        result = {
            "ms": round(seconds * 1e3, 4),
            "bytes": count,
            "gb_s": round(rate / 1e9, 2),
            "percent_of_read": round(100 * rate / read, 1),
        }
        echo(f"{name}: {result['gb_s']:,.1f} GB/s, {result['percent_of_read']}% of reading")
        return result

    report: dict[str, Any] = {"attention": {}, "mlp": {}}
    # A CPU reads one ring after the other: a larger batch takes longer and shows nothing new.
    small, large = min(options.sessions), max(options.sessions)
    for sessions in sorted({small} if model.device.type == "cpu" else {small, large}):
        seconds, count = _attention(model, sessions)
        name = f"attention over {sessions} full windows"
        report["attention"][str(sessions)] = entry(name, count, seconds)
        free_memory(model.device)
    for rows in _MLP_ROWS:
        seconds, count = _mlp(model, rows)
        name = f"gated MLPs, {rows} rows"
        report["mlp"][str(rows)] = entry(name, count, seconds)
    return report


def _attention(model: LoadedModel, sessions: int) -> tuple[float, int]:
    """Return the seconds of one step's attention in all layers, and the bytes of the rings."""
    ring = new_ring(model, sessions)
    prefix = noise_prefix(model, 2 * model.window)
    attention = StepAttention(model, ring, fill_rings(ring, sessions, prefix))
    kv = attention.open()
    seconds = device_seconds(lambda: attention.attend(kv), _TIMES, model.device)
    return seconds, ring.nbytes


def _mlp(model: LoadedModel, rows: int) -> tuple[float, int]:
    """Return the seconds of the gated MLPs of all layers, and the bytes of their weights.

    The layers run one after the other, as in a step, so that no layer's weights stay in a cache.
    They multiply with the kernel that a step would use.
    """
    blocks = model.lm.transformer.layers
    layers = [block.get_submodule("gating") for block in blocks]
    x = torch.randn(rows, 1, model.config.lm.dim, device=model.device, dtype=model.lm.dtype)

    def call() -> None:
        for layer in layers:
            layer(x)

    seconds = device_seconds(call, _TIMES, model.device)
    return seconds, sum(module_bytes(layer) for layer in layers)
