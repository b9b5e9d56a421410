"""Attention over rings of keys and values: by slices, under a mask, or in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipecat_personaplex.engine.kv_cache import RingCache

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.models.attention import RotaryCosSin
from pipecat_personaplex.models.layers import Rows
from pipecat_personaplex.quantization.kv import FP8


def _attention_dtype(q: Tensor, kept: torch.dtype) -> torch.dtype:
    """In which a query meets what is kept: the more precise of both."""
    return q.dtype if kept == FP8 else torch.promote_types(q.dtype, kept)


def _slots(rows: Rows, device: torch.device) -> Tensor:
    """The slots of a batch, int64 [B]."""
    if isinstance(rows, slice):
        return torch.arange(rows.start, rows.stop, device=device)
    return rows


@dataclass(frozen=True)
class _Ring:
    """Where a slot's new positions go and how much of its ring is filled then."""

    slot: int
    place: int
    filled: int
    mask: Tensor | None  # [steps, filled], or None where every new position sees all of it


@lru_cache(maxsize=1024)
def _frame_mask(place: int, filled: int, window: int, steps: int) -> Tensor:
    """Hides from each of a frame's positions the later ones: [steps, filled] bool."""
    mask = torch.ones(steps, filled, dtype=torch.bool)
    for step in range(steps):
        for later in range(step + 1, steps):
            mask[step, (place + later) % window] = False
    return mask


class SlicedRingAttention:
    """Attention a slot at a time over exactly the filled part of its ring.

    No mask, no gather, no work for places not yet written; and a row's result does not depend
    on its neighbours.
    """

    def __init__(self, cache: RingCache, batch: Batch, starts: list[int], steps: int):
        self._keys, self._values = cache.kept_keys, cache.kept_values
        self._window = window = cache.window
        self._steps = steps
        self._rings = []
        for slot, start in zip(batch.slots, starts, strict=True):
            filled = min(start + steps, window)
            place = start % window
            mask = _frame_mask(place, filled, window, steps) if steps > 1 else None
            self._rings.append(_Ring(slot, place, filled, mask))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        stores = self._keys[layer], self._values[layer]
        dtype = _attention_dtype(q, stores[0].data.dtype)
        queries = q if q.dtype == dtype else q.to(dtype)
        outs = []
        for row, ring in enumerate(self._rings):
            slot, end = ring.slot, ring.place + self._steps
            for store, new in zip(stores, (k[row], v[row]), strict=True):
                if end <= self._window:
                    store.put((slot, slice(None), slice(ring.place, end)), new)
                else:
                    head = self._window - ring.place
                    store.put((slot, slice(None), slice(ring.place, None)), new[:, :head])
                    store.put((slot, slice(None), slice(end - self._window)), new[:, head:])
            filled = (slice(slot, slot + 1), slice(None), slice(ring.filled))
            outs.append(
                F.scaled_dot_product_attention(
                    queries[row : row + 1],
                    stores[0].read(dtype, filled),
                    stores[1].read(dtype, filled),
                    attn_mask=ring.mask,
                )
            )
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if out.dtype == q.dtype else out.to(q.dtype)


class MaskedRingAttention:
    """Attention for all slots at once over whole rings, with a mask made on the device.

    Shapes and addresses do not depend on how long the calls are, so that a step can be captured.
    """

    def __init__(self, cache: RingCache, batch: Batch, positions: Tensor, steps: int):
        self._cache, self._rows = cache, batch.rows
        device = positions.device
        new = positions[:, None] + torch.arange(steps, device=device)  # [B, T]
        self._places = new % cache.window
        self._slots = _slots(batch.rows, device)[:, None].expand_as(new)
        places = torch.arange(cache.window, device=device)
        last = new[:, -1:]
        # The newest position each place can hold once this step is written; before the ring
        # has gone round, places past the end hold none.
        held = last - (last - places) % cache.window  # [B, window]
        visible = (held[:, None] >= 0) & (held[:, None] <= new[:, :, None])
        self._mask = visible[:, None]  # [B, 1, T, window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        keys, values = self._cache.kept_keys[layer], self._cache.kept_values[layer]
        places = (self._slots, slice(None), self._places)
        keys.put(places, k.transpose(1, 2))
        values.put(places, v.transpose(1, 2))
        dtype = _attention_dtype(q, keys.data.dtype)
        out = F.scaled_dot_product_attention(
            q.to(dtype),
            keys.read(dtype, self._rows),
            values.read(dtype, self._rows),
            attn_mask=self._mask,
        )
        return out.to(q.dtype)


class TritonRingAttention:
    """Attention for all slots at once, each over the filled part of its ring, in Triton.

    A step can be captured, as with ``MaskedRingAttention``; only filled positions are read.
    """

    def __init__(self, cache: RingCache, batch: Batch, positions: Tensor, steps: int):
        from pipecat_personaplex.kernels import ring_attention as attention
        from pipecat_personaplex.kernels import ring_ops as rings

        self._attend = attention.attend
        self._cache, self._positions = cache, positions
        self._slots = _slots(batch.rows, positions.device)
        _, _, heads, window, head_dim = cache.keys.shape
        self._plan = rings.Plan.of(heads, window, head_dim, cache.keys.dtype)
        queries = positions.shape[0] * steps
        self._workspace = attention.Workspace.of(self._plan, queries, positions.device)
        self._turn: RotaryCosSin | None = None

    def rotate_by(self, turn: RotaryCosSin) -> None:
        """Have ``attend`` rotate queries and keys by these angles."""
        self._turn = turn

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write new keys and values, then attend: each [B, H, T, D] -> [B, H, T, D]."""
        keys, values = self._cache.kept_keys[layer], self._cache.kept_values[layer]
        where = (keys, values, self._slots, self._positions)
        return self._attend(self._plan, q, k, v, *where, self._workspace, self._turn)
