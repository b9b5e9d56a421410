"""Stored keys and values of running sessions: one ring for each slot and layer.

A ring of ``window`` indices stores position p at index ``p % window``. A position that leaves the
window is overwritten, so attention needs no mask for old positions. A frame of several positions
(Mimi's two) is stored before any of them attends. So its first position no longer sees the old
entry that its last one has overwritten; the reference does the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.ring_attention import (
    CpuRingAttention,
    MaskedRingAttention,
    SlicedRingAttention,
    TritonRingAttention,
)
from pipecat_personaplex.kernels.availability import cpu_attention_works, ring_attention_works
from pipecat_personaplex.kernels.cpu_attention import can_attend
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.quantization.kv import KVTensor

# Positions times layers that ``write`` converts at once.
_POSITIONS_WRITTEN = 4096
# Numbers in the keys of one slot from which a full ring no longer fits into a cache.
_CPU_KERNEL_MIN_NUMBERS = 16 << 20


class RingCache:
    """The rings of all slots and layers of one transformer.

    Args:
        layers: Transformer layers.
        slots: Rings per layer.
        heads: Attention heads.
        window: Positions a ring stores.
        head_dim: Features a head.
        dtype: Type of queries and of new keys and values.
        device: Device of the rings.
        kv_dtype: Type of the stored keys and values: float32, bfloat16 or e4m3; None: ``dtype``.
        masked: On a CPU, attend to whole rings under a mask, as a captured step does.

    Attributes:
        stored_keys: [layers, slots, heads, window, head_dim], with scales if quantised.
        stored_values: The same shape.
        window: Positions a ring stores.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        heads: int,
        window: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: torch.dtype | None = None,
        masked: bool = False,
    ):
        self.window = window
        stored = kv_dtype or dtype
        shape = (layers, slots, heads, window, head_dim)
        self._kind: Literal["sliced", "cpu", "masked", "triton"]
        if device.type == "cpu":
            self._kind = "masked" if masked else "sliced"
            if not masked and _repays_cpu_kernel(shape, dtype, stored):
                self._kind = "cpu"
        elif ring_attention_works(device, heads, window, head_dim, dtype, stored):
            self._kind = "triton"
        else:
            self._kind = "masked"
        # Under a mask, unwritten indices are read with weight zero; zero times NaN is NaN, so they
        # must hold numbers. Otherwise they are never read, and a CPU that allocates memory lazily
        # takes it only as sessions grow long.
        self._reads_unwritten = self._kind == "masked"
        self.stored_keys = KVTensor.new(shape, stored, device, zeros=self._reads_unwritten)
        self.stored_values = KVTensor.new(shape, stored, device, zeros=self._reads_unwritten)

    @classmethod
    def for_lm(
        cls,
        lm: PersonaPlexLM,
        slots: int,
        device: torch.device,
        *,
        window: int | None = None,
        kv_dtype: torch.dtype | None = None,
        masked: bool = False,
    ) -> RingCache:
        """The rings of a temporal transformer; ``window`` defaults to the model's."""
        config = lm.config
        return cls(
            layers=config.num_layers,
            slots=slots,
            heads=config.num_heads,
            window=window or config.window,
            head_dim=config.dim // config.num_heads,
            dtype=lm.dtype,
            device=device,
            kv_dtype=kv_dtype,
            masked=masked,
        )

    @property
    def keys(self) -> Tensor:
        """Stored keys without scales: [layers, slots, heads, window, head_dim]."""
        return self.stored_keys.data

    @property
    def values(self) -> Tensor:
        """Stored values without scales: [layers, slots, heads, window, head_dim]."""
        return self.stored_values.data

    @property
    def nbytes(self) -> int:
        """Bytes of all rings, scales included."""
        return self.stored_keys.nbytes + self.stored_values.nbytes

    def at(
        self, batch: Batch, starts: list[int] | None, positions: Tensor, steps: int = 1
    ) -> KVStore:
        """Begin a step that appends ``steps`` positions to the ring of each slot and attends to it.

        Args:
            batch: The slots of the step.
            starts: First new position of each slot, if the host knows it; required on a CPU
                without ``masked``.
            positions: The same on the device, [B] int64.
            steps: New positions of each slot.
        """
        stored = self.stored_keys, self.stored_values
        if self._kind in ("sliced", "cpu"):
            assert starts is not None
            if self._kind == "cpu" and steps == 1:
                return CpuRingAttention(*stored, batch, starts)
            return SlicedRingAttention(*stored, batch, starts, steps)
        if self._kind == "triton":
            return TritonRingAttention(*stored, batch, positions, steps)
        return MaskedRingAttention(*stored, batch, positions, steps)

    def clear(self, slot: int) -> None:
        """Zero the rings of a slot if a step may read unwritten indices."""
        if self._reads_unwritten:
            self.stored_keys[:, slot].zero_()
            self.stored_values[:, slot].zero_()

    def write(self, slot: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Store consecutive positions in the rings of a slot, in all layers.

        Args:
            slot: The slot.
            first: The first of the n positions.
            keys: [layers, heads, n, head_dim].
            values: The same shape.
        """
        n = keys.shape[2]
        assert n <= self.window
        start = first % self.window
        wrapped = max(0, start + n - self.window)  # go on at the ring's start
        # Copies of whole ranges: an index for each position would take several times as long.
        runs = [(slice(0, n - wrapped), start)]
        if wrapped:
            runs.append((slice(n - wrapped, n), 0))
        # A few layers at a time: quantising to e4m3 takes several times the memory of its input.
        count = max(1, _POSITIONS_WRITTEN // max(1, n))
        for layer in range(0, keys.shape[0], count):
            layers = slice(layer, layer + count)
            for run, at in runs:
                index = (slice(None), slice(None), slice(at, at + run.stop - run.start))
                self.stored_keys[layers, slot].put(index, keys[layers, :, run])
                self.stored_values[layers, slot].put(index, values[layers, :, run])


def _repays_cpu_kernel(shape: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Whether the CPU kernel attends to such rings, and they are large enough to compile it."""
    layers, _, heads, window, head_dim = shape
    return (
        layers * heads * window * head_dim >= _CPU_KERNEL_MIN_NUMBERS
        and can_attend(head_dim, dtype, stored)
        and cpu_attention_works(head_dim, stored)
    )
