"""Attention of a step over rings of keys and values: by slices, under a mask, or in a kernel.

The four classes compute the same. Each is created for one step, is given the stored keys and
values of all layers, [layers, slots, heads, window, head_dim], and stores the step's new ones.
``engine.kv_cache`` describes the rings and chooses the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

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
    """Attend to exactly the filled part of each ring; for a CPU.

    It needs no mask for unwritten indices and does no work for them, and a row's result does not
    depend on the other rows. Neighbouring slots whose rings are equally filled, such as those of
    long calls, attend in one call. The host must know every position.

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
        self._slots, self._ring_indices = batch.slots, [start % window for start in starts]
        self._index: _Index | None = None
        if len(starts) > 1:  # for a single slot, slices are faster
            new = [[(first + step) % window for step in range(steps)] for first in starts]
            self._index = (torch.tensor(batch.slots)[:, None], slice(None), torch.tensor(new))
        self._groups = list(self._group(starts))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        stores = self._keys[layer], self._values[layer]  # each [slots, H, window, D]
        stored = stores[0].data.dtype
        # Reading bfloat16 as it is takes a fraction of the time that expanding it takes.
        dtype = stored if stored == torch.bfloat16 else _attention_dtype(q, stored)
        queries = q if q.dtype == dtype else q.to(dtype)
        for store, new in zip(stores, (k, v), strict=True):
            if self._index is None:
                self._put_one(store, new[0])
            else:  # indexing around the heads takes [B, T, H, D]
                store.put(self._index, new.transpose(1, 2))
        outs = [
            F.scaled_dot_product_attention(
                queries[group.rows],
                group.keys[layer] if group.keys else stores[0].read(dtype, group.filled),
                group.values[layer] if group.values else stores[1].read(dtype, group.filled),
                attn_mask=group.mask,
            )  # keys and values: [n, H, filled, D]
            for group in self._groups
        ]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if out.dtype == q.dtype else out.to(q.dtype)

    def _group(self, starts: list[int]) -> Iterator[_Group]:
        steps, window = self._steps, self._window

        def key(row: int) -> tuple[int, int]:
            # The first is the same for rows of consecutive slots.
            return self._slots[row] - row, min(starts[row] + steps, window)

        for (offset, filled), members in groupby(range(len(starts)), key):
            rows = list(members)
            mask = None
            if steps > 1:
                masks = [_frame_mask(self._ring_indices[r], filled, window, steps) for r in rows]
                mask = torch.stack(masks)[:, None]  # [n, 1, steps, filled]
            first, end = rows[0], rows[-1] + 1
            slots = slice(first + offset, end + offset)
            index = (slots, slice(None), slice(filled))
            yield _Group(
                slice(first, end),
                index,
                mask,
                _views(self._keys, index),
                _views(self._values, index),
            )

    def _put_one(self, store: KVTensor, new: Tensor) -> None:
        """Store [H, T, D] in the ring of the only slot."""
        [slot], [ring_index] = self._slots, self._ring_indices
        end = ring_index + self._steps
        if end <= self._window:
            store.put((slot, slice(None), slice(ring_index, end)), new)
        else:  # the frame wraps: its last positions are at the start of the ring
            head = self._window - ring_index
            store.put((slot, slice(None), slice(ring_index, None)), new[:, :head])
            store.put((slot, slice(None), slice(end - self._window)), new[:, head:])


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


_Index = tuple[Tensor, slice, Tensor]
"""Slots [B, 1], all heads, and ring indices [B, T]."""


@dataclass(frozen=True)
class _Group:
    """Rows of a sliced step that attend in one call.

    Attributes:
        rows: The n rows of the batch.
        filled: Index of the filled part of their rings.
        mask: bool [n, 1, steps, filled]; None if every new position sees all filled indices.
        keys: That part of each layer's keys; empty if they have scales.
        values: The same of the values.
    """

    rows: slice
    filled: tuple[slice, slice, slice]
    mask: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def _views(stored: KVTensor, index: tuple[slice, slice, slice]) -> tuple[Tensor, ...]:
    """A part of each layer, made once a step, because each view takes time; empty with scales.

    Without scales, ``attend`` works in the stored type, and the views need no conversion.
    """
    if stored.scales is not None:
        return ()
    return stored.data[(slice(None), *index)].unbind(0)


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
