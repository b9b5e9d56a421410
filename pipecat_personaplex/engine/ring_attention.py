"""Attention of a step over rings of keys and values: by slices, under a mask, or in a kernel.

The four classes compute the same. Each is created for one step, is given the stored keys and
values of all layers, [layers, slots, heads, window, head_dim], and stores the step's new ones.
``engine.kv_cache`` describes the rings and chooses the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.kernels.cpu_attention import Rows as CpuRows
from pipecat_personaplex.kernels.cpu_attention import attend as cpu_attend
from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.models.layers import Rows
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor


class SlicedRingAttention:
    """Attend one slot at a time to exactly the filled part of its ring; for a CPU.

    It needs no mask for unwritten indices and does no work for them, and a row's result does not
    depend on the other rows. The host must know every position.

    Args:
        keys: Stored keys of all layers.
        values: Stored values of all layers.
        batch: The slots of the step.
        starts: First new position of each slot.
        steps: New positions of each slot.
    """

    def __init__(
        self, keys: KVTensor, values: KVTensor, batch: Batch, starts: list[int], steps: int
    ):
        self._keys, self._values = keys, values
        self._window = window = keys.data.shape[-2]
        self._steps = steps
        self._rings = []
        for slot, start in zip(batch.slots, starts, strict=True):
            filled = min(start + steps, window)
            ring_index = start % window
            mask = _frame_mask(ring_index, filled, window, steps) if steps > 1 else None
            self._rings.append(_Ring(slot, ring_index, filled, mask))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        stores = self._keys[layer], self._values[layer]  # each [slots, H, window, D]
        stored = stores[0].data.dtype
        # Reading bfloat16 as it is takes a fraction of the time that expanding it takes.
        dtype = stored if stored == torch.bfloat16 else _attention_dtype(q, stored)
        queries = q if q.dtype == dtype else q.to(dtype)
        outs = []
        for row, ring in enumerate(self._rings):
            slot, end = ring.slot, ring.ring_index + self._steps
            for store, new in zip(stores, (k[row], v[row]), strict=True):  # [H, T, D]
                if end <= self._window:
                    store.put((slot, slice(None), slice(ring.ring_index, end)), new)
                else:  # the frame wraps: its last positions are at the start of the ring
                    head = self._window - ring.ring_index
                    store.put((slot, slice(None), slice(ring.ring_index, None)), new[:, :head])
                    store.put((slot, slice(None), slice(end - self._window)), new[:, head:])
            filled = (slice(slot, slot + 1), slice(None), slice(ring.filled))
            outs.append(
                F.scaled_dot_product_attention(
                    queries[row : row + 1],
                    stores[0].read(dtype, filled),  # [1, H, filled, D]
                    stores[1].read(dtype, filled),
                    attn_mask=ring.mask,
                )
            )
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if out.dtype == q.dtype else out.to(q.dtype)


class CpuRingAttention:
    """Attend for all slots at once, each to the filled part of its ring, in the CPU kernel.

    For steps of one position in float32. As with ``SlicedRingAttention``, the host must know every
    position. The kernel also applies rotary embedding.

    Args:
        keys: Stored keys of all layers.
        values: Stored values of all layers.
        batch: The slots of the step.
        starts: New position of each slot.
    """

    def __init__(self, keys: KVTensor, values: KVTensor, batch: Batch, starts: list[int]):
        self._keys, self._values = keys, values
        window = keys.data.shape[-2]
        self._rows = CpuRows(
            batch.slots,
            [start % window for start in starts],
            [min(start + 1, window) for start in starts],
        )
        self._rotary: RotaryCosSin | None = None

    def rotate_by(self, rotary: RotaryCosSin) -> None:
        """Rotate queries and keys by these angles in every ``attend``."""
        self._rotary = rotary

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, then attend: each [B, H, 1, D] -> [B, H, 1, D]."""
        keys, values = self._keys[layer], self._values[layer]
        return cpu_attend(q, k, v, keys, values, self._rows, self._rotary)


class MaskedRingAttention:
    """Attend for all slots at once to whole rings under a mask.

    The host needs no positions, and shapes and addresses do not depend on them, so a CUDA graph can
    capture the step. It reads the whole window even of a young session.

    Args:
        keys: Stored keys of all layers.
        values: Stored values of all layers.
        batch: The slots of the step.
        positions: First new position of each slot, [B] int64.
        steps: New positions of each slot.
    """

    def __init__(
        self, keys: KVTensor, values: KVTensor, batch: Batch, positions: Tensor, steps: int
    ):
        self._keys, self._values, self._rows = keys, values, batch.rows
        window, device = keys.data.shape[-2], positions.device
        new = positions[:, None] + torch.arange(steps, device=device)  # [B, T]
        self._ring_indices = new % window
        self._slots = _slots(batch.rows, device)[:, None].expand_as(new)
        ring_indices = torch.arange(window, device=device)
        last = new[:, -1:]
        # The newest position of each ring index after this step; negative for indices that are not
        # yet written.
        stored = last - (last - ring_indices) % window  # [B, window]
        # A query sees its own and earlier positions, not the later ones of its frame.
        visible = (stored[:, None] >= 0) & (stored[:, None] <= new[:, :, None])
        self._mask = visible[:, None]  # [B, 1, T, window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        keys, values = self._keys[layer], self._values[layer]
        # Indexing slots and ring indices [B, T] around the heads gives [B, T, H, D].
        index = (self._slots, slice(None), self._ring_indices)
        keys.put(index, k.transpose(1, 2))
        values.put(index, v.transpose(1, 2))
        dtype = _attention_dtype(q, keys.data.dtype)
        out = F.scaled_dot_product_attention(
            q.to(dtype),
            keys.read(dtype, self._rows),  # [B, H, window, D]
            values.read(dtype, self._rows),
            attn_mask=self._mask,
        )
        return out.to(q.dtype)


class TritonRingAttention:
    """Attend for all slots at once, each to the filled part of its ring, in Triton.

    As with ``MaskedRingAttention``, a CUDA graph can capture the step; but only filled positions
    are read. The kernels also apply rotary embedding.

    Args:
        keys: Stored keys of all layers.
        values: Stored values of all layers.
        batch: The slots of the step.
        positions: First new position of each slot, [B] int64.
        steps: New positions of each slot.
    """

    def __init__(
        self, keys: KVTensor, values: KVTensor, batch: Batch, positions: Tensor, steps: int
    ):
        from pipecat_personaplex.kernels.ring_attention import Workspace, attend
        from pipecat_personaplex.kernels.ring_ops import RingPlan

        self._attend = attend
        self._keys, self._values, self._positions = keys, values, positions
        self._slots = _slots(batch.rows, positions.device)
        _, _, heads, window, head_dim = keys.data.shape
        self._plan = RingPlan.of(heads, window, head_dim, keys.data.dtype)
        queries = positions.shape[0] * steps
        self._workspace = Workspace.of(self._plan, queries, positions.device)
        self._rotary: RotaryCosSin | None = None

    def rotate_by(self, rotary: RotaryCosSin) -> None:
        """Rotate queries and keys by these angles in every ``attend``."""
        self._rotary = rotary

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        return self._attend(
            self._plan,
            q,
            k,
            v,
            self._keys[layer],
            self._values[layer],
            self._slots,
            self._positions,
            self._workspace,
            self._rotary,
        )


@dataclass(frozen=True)
class _Ring:
    """A slot's part in a sliced step.

    Attributes:
        slot: The slot.
        ring_index: Ring index of the first new position.
        filled: Filled ring indices after the step.
        mask: bool [steps, filled]; None if every new position sees all filled indices.
    """

    slot: int
    ring_index: int
    filled: int
    mask: Tensor | None


@lru_cache(maxsize=1024)
def _frame_mask(ring_index: int, filled: int, window: int, steps: int) -> Tensor:
    """A mask that hides from each position of a frame the later ones: bool [steps, filled]."""
    mask = torch.ones(steps, filled, dtype=torch.bool)
    for step in range(steps):
        for later in range(step + 1, steps):
            mask[step, (ring_index + later) % window] = False
    return mask


def _attention_dtype(q: Tensor, stored: torch.dtype) -> torch.dtype:
    """The type to attend in: the more precise of the queries' and the stored keys' types."""
    return q.dtype if stored == FP8 else torch.promote_types(q.dtype, stored)


def _slots(rows: Rows, device: torch.device) -> Tensor:
    """The slots of a batch as a tensor, int64 [B]."""
    if isinstance(rows, slice):
        return torch.arange(rows.start, rows.stop, device=device)
    return rows
