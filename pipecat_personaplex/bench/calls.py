"""Calls to time: runners, and rings filled without stepping there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.bench.models import load_subject
from pipecat_personaplex.bench.options import Fill
from pipecat_personaplex.config import EngineConfig, Quantization, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefix
from pipecat_personaplex.models.attention import KVStore, offer_rotation, rotation
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.device import resolve_kv_dtype
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

# So that callers' rings do not all go round in the same step.
_STAGGER = 37


@dataclass(frozen=True)
class Served:
    """A model as an engine would run it.

    Attributes:
        config: Its architecture; ``lm.window`` is what a caller's rings hold.
        lm: The language model.
        mimi: The codec.
        kv_dtype: Of keys and values.
        quantization: Of the weights; None is floating point.
        cuda_graphs: As in ``EngineConfig``.
    """

    config: ModelConfig
    lm: PersonaPlexLM
    mimi: Mimi
    kv_dtype: torch.dtype
    quantization: Quantization | None
    cuda_graphs: bool


def load_served(model: str, engine: EngineConfig) -> Served:
    """Load what is measured.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        engine: How it runs.
    """
    ours = load_subject(model, engine)
    device = ours.mimi.frequencies.device
    return Served(
        config=ours.config.with_context(engine.context),
        lm=ours.lm,
        mimi=ours.mimi,
        kv_dtype=resolve_kv_dtype(engine.kv_dtype, ours.lm.dtype, device),
        quantization=engine.quantization or ours.config.quantization,
        cuda_graphs=engine.cuda_graphs,
    )


def new_runner(served: Served, slots: int, device: torch.device) -> ModelRunner:
    """A runner of so many slots, its steps captured as an engine's are."""
    runner = ModelRunner(served.config, served.lm, served.mimi, slots, device, served.kv_dtype)
    if served.cuda_graphs:
        runner.capture()
    return runner


def new_ring(served: Served, slots: int, device: torch.device) -> RingCache:
    """The temporal transformer's rings as a runner has them."""
    return RingCache.for_lm(
        served.lm, slots, device, window=window_of(served), kv_dtype=served.kv_dtype
    )


def window_of(served: Served) -> int:
    """Frames that a caller's rings hold."""
    return served.config.lm.window


def batch_of(count: int, device: torch.device) -> Batch:
    """The first slots, named as a step names them: on CUDA by an index on the device."""
    slots = tuple(range(count))
    if device.type == "cuda":
        return Batch(slots, torch.arange(count, device=device))
    return Batch.of(slots, device)


class StepAttention:
    """The attention of a step in all layers, for callers in the first slots, to random inputs.

    Args:
        served: The model.
        ring: The callers' keys and values.
        starts: Each caller's place.
        device: Where all that is.
    """

    def __init__(self, served: Served, ring: RingCache, starts: list[int], device: torch.device):
        config = served.config.lm
        shape = (len(starts), config.num_heads, 1, config.dim // config.num_heads)
        self._qkv = torch.randn(3, *shape, device=device, dtype=served.lm.dtype)
        self._layers = config.num_layers
        self._ring, self._starts, self._batch = ring, starts, batch_of(len(starts), device)
        self._positions = torch.tensor(starts, device=device)
        self._turn = rotation(self._positions[:, None], served.lm.frequencies)

    def open(self) -> KVStore:
        """Begin a step; where the store turns queries and keys, it does so here too."""
        kv = self._ring.at(self._batch, self._starts, self._positions)
        offer_rotation(self._turn, kv)
        return kv

    def attend(self, kv: KVStore) -> None:
        """Every layer, one after the other."""
        for layer in range(self._layers):
            kv.attend(layer, *self._qkv)


def noise_prefix(served: Served, positions: int, device: torch.device) -> Prefix:
    """As after so many positions, of which the window's worth is kept. Speed is that of any other.

    All layers and heads share one block of noise, so that it takes next to no memory.
    """
    config = served.config.lm
    kept = min(positions, window_of(served))
    head_dim = config.dim // config.num_heads
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, served.lm.dtype)

    shape = (config.num_layers, config.num_heads, kept, head_dim)
    return Prefix(
        keys=noise(kept, head_dim).expand(shape),
        values=noise(kept, head_dim).expand(shape),
        hidden=noise(config.dim),
        column=initial_column(served.config).to(device),
        length=positions,
    )


def start(runner: ModelRunner, sessions: int, prefix: Prefix, fill: Fill) -> None:
    """Join ``sessions`` callers with different seeds, as old as ``fill`` says.

    Args:
        runner: With at least so many slots.
        sessions: Callers, in the first slots.
        prefix: After ``fill.positions``.
        fill: How old the calls are.
    """
    for slot in range(sessions):
        theirs = replace(prefix, length=_length(slot, prefix))
        runner.join(slot, theirs, SamplingParams(seed=slot))
        if fill.said:
            runner.skip_ahead(slot, fill.said)


def fill_rings(ring: RingCache, sessions: int, prefix: Prefix) -> list[int]:
    """Lay a prefix into the first slots' rings; return each one's next position."""
    lengths = [_length(slot, prefix) for slot in range(sessions)]
    for slot, length in enumerate(lengths):
        theirs = replace(prefix, length=length)
        ring.write(slot, theirs.first, theirs.keys, theirs.values)
    return lengths


def _length(slot: int, prefix: Prefix) -> int:
    """Past the window it makes no difference to the work how far a call has come."""
    return prefix.length + (_STAGGER * slot if prefix.first else 0)


def stepping(runner: ModelRunner, sessions: int) -> Callable[[], object]:
    """One step of the first ``sessions`` slots, from audio in to audio out."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (sessions, FRAME_SAMPLES))
    pcm = torch.from_numpy(noise.astype(np.float32))
    batch = Batch.of(list(range(sessions)), runner.device)
    return lambda: runner.step(batch, pcm)
