"""What is timed: runners and KV rings of sessions that are in the middle of a call.

Ring caches are filled with noise instead of being stepped to: the speed of a step depends on how
much of a ring is filled, not on the values in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.bench.measurements import Fill
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefix
from pipecat_personaplex.models.attention import KVStore, offer_rotation, rotation
from pipecat_personaplex.models.delay_pattern import initial_column

# Frames between the positions of two sessions, so that their rings wrap in different steps.
_STAGGER = 37


def new_runner(model: LoadedModel, slots: int) -> ModelRunner:
    """Return a runner with this many slots, with its CUDA graphs captured as in an engine."""
    runner = ModelRunner(model.config, model.lm, model.mimi, slots, model.device, model.kv_dtype)
    if model.cuda_graphs:
        runner.capture()
    return runner


def new_ring(model: LoadedModel, slots: int) -> RingCache:
    """Return the KV rings of the temporal transformer, as a runner has them."""
    return RingCache.for_lm(
        model.lm, slots, model.device, window=model.window, kv_dtype=model.kv_dtype
    )


def first_slots(count: int, device: torch.device) -> Batch:
    """Return a batch of the first slots. On CUDA its rows are an index tensor, as in a step."""
    slots = tuple(range(count))
    if device.type == "cuda":
        return Batch(slots, torch.arange(count, device=device))
    return Batch.of(slots, device)


class StepAttention:
    """The attention of one step over all layers, for sessions in the first slots.

    Queries, keys and values are random.

    Args:
        model: The model.
        ring: Keys and values of the sessions.
        starts: The next position of each session.
    """

    def __init__(self, model: LoadedModel, ring: RingCache, starts: list[int]):
        config, device = model.config.lm, model.device
        shape = (len(starts), config.num_heads, 1, config.dim // config.num_heads)
        self._qkv = torch.randn(3, *shape, device=device, dtype=model.lm.dtype)  # [3, B, H, 1, D]
        self._layers = config.num_layers
        self._ring, self._starts = ring, starts
        self._batch = first_slots(len(starts), device)
        self._positions = torch.tensor(starts, device=device)  # [B]
        self._rotation = rotation(self._positions[:, None], model.lm.frequencies)

    def open(self) -> KVStore:
        """Begin a step. A store that rotates queries and keys itself gets the rotation here."""
        kv = self._ring.at(self._batch, self._starts, self._positions)
        offer_rotation(self._rotation, kv)
        return kv

    def attend(self, kv: KVStore) -> None:
        """Attend in every layer, one after the other."""
        for layer in range(self._layers):
            kv.attend(layer, *self._qkv)


def noise_prefix(model: LoadedModel, positions: int) -> Prefix:
    """Return the state after ``positions`` frames, with noise for keys and values.

    It holds at most the last window of them. All layers and heads share one block of noise, so
    the prefix takes hardly any memory.
    """
    config, device = model.config.lm, model.device
    stored = min(positions, model.window)
    head_dim = config.dim // config.num_heads
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, model.lm.dtype)

    shape = (config.num_layers, config.num_heads, stored, head_dim)
    return Prefix(
        keys=noise(stored, head_dim).expand(shape),
        values=noise(stored, head_dim).expand(shape),
        hidden=noise(config.dim),
        column=initial_column(model.config).to(device),
        length=positions,
    )


def start_sessions(runner: ModelRunner, sessions: int, prefix: Prefix, fill: Fill) -> None:
    """Start ``sessions`` sessions with different seeds in the first slots.

    Args:
        runner: Has at least this many slots.
        sessions: How many.
        prefix: The state after ``fill.positions``.
        fill: How far into their calls the sessions are.
    """
    for slot in range(sessions):
        runner.join(slot, replace(prefix, length=_length(slot, prefix)), SamplingParams(seed=slot))
        if fill.codec_frames:
            runner.skip_ahead(slot, fill.codec_frames)


def fill_rings(ring: RingCache, sessions: int, prefix: Prefix) -> list[int]:
    """Write a prefix into the rings of the first slots; return the next position of each."""
    lengths = [_length(slot, prefix) for slot in range(sessions)]
    for slot, length in enumerate(lengths):
        staggered = replace(prefix, length=length)
        ring.write(slot, staggered.first, staggered.keys, staggered.values)
    return lengths


def _length(slot: int, prefix: Prefix) -> int:
    """Position of a slot: staggered if the window is full, where it costs nothing extra."""
    return prefix.length + (_STAGGER * slot if prefix.first else 0)


def step_call(runner: ModelRunner, sessions: int) -> Callable[[], object]:
    """Return a function that runs one step of the first ``sessions`` slots, audio to audio."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (sessions, FRAME_SAMPLES))
    pcm = torch.from_numpy(noise.astype(np.float32))  # [B, 1920]
    batch = Batch.of(list(range(sessions)), runner.device)
    return lambda: runner.step(batch, pcm)
