"""Keys and values of running calls: a ring per slot.

A ring of ``window`` places needs no mask of age: place ``p % window`` holds position p, and what
has left the window has been overwritten. A frame of several positions (Mimi's two) is written
first and then attended to, so that even its first position no longer sees what its last one
replaced; this is what the reference computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from pipecat_personaplex.kernels.kv_format import FP8, KVTensor
from pipecat_personaplex.kernels.triton_support import have_triton
from pipecat_personaplex.models.attention import KVStore, Rotation
from pipecat_personaplex.models.layers import Rows
from pipecat_personaplex.models.lm import PersonaPlexLM

# Keys laid into a slot at once, of all layers.
_POSITIONS_WRITTEN = 4096


@dataclass(frozen=True)
class Batch:
    """The slots of one step, in ascending order.

    Attributes:
        slots: Their indices; none where the device alone knows them.
        rows: The same as a slice where they are neighbours (views, no copies), else a tensor.
    """

    slots: tuple[int, ...]
    rows: Rows

    @staticmethod
    def of(slots: Iterable[int], device: torch.device) -> Batch:
        """Of distinct slots in any order."""
        return _batch(tuple(sorted(slots)), device)


@lru_cache(maxsize=1024)
def _batch(slots: tuple[int, ...], device: torch.device) -> Batch:
    # The same callers step together for minutes: their index tensor is made once.
    first, last = slots[0], slots[-1]
    if last - first + 1 == len(slots):
        return Batch(slots, slice(first, last + 1))
    return Batch(slots, torch.tensor(slots, device=device))


class RingCache:
    """One ring a slot and layer.

    Args:
        layers: Transformer layers.
        slots: Rings per layer.
        heads: Attention heads.
        window: Positions a ring holds.
        head_dim: Features a head.
        dtype: Of the keys and values that come in.
        device: Where they live.
        kv_dtype: In which they are kept: float32, bfloat16 or e4m3; ``dtype`` if not given.
        masked: On a CPU, attend as a step that is captured may: over whole rings.
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
        kept = kv_dtype or dtype
        if device.type == "cpu":
            self._by_length = not masked
        else:
            self._by_length = _kernels_run(device, heads, window, head_dim, dtype, kept)
        # On a CPU every place is written before it is read, so nothing is cleared, and memory
        # that the system hands out lazily is only taken as calls grow long. Under a mask, places
        # not yet written are read and weigh nothing; but nothing times NaN is NaN.
        shape = (layers, slots, heads, window, head_dim)
        self.kept_keys = KVTensor.new(shape, kept, device, zeros=not self._by_length)
        self.kept_values = KVTensor.new(shape, kept, device, zeros=not self._by_length)

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
        """The temporal transformer's rings; ``window`` is the model's own if not given."""
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
        """As they are kept: [layers, slots, heads, window, head_dim]."""
        return self.kept_keys.data

    @property
    def values(self) -> Tensor:
        """As they are kept: [layers, slots, heads, window, head_dim]."""
        return self.kept_values.data

    @property
    def nbytes(self) -> int:
        """Memory of all rings when full."""
        return self.kept_keys.nbytes + self.kept_values.nbytes

    def at(
        self, batch: Batch, starts: list[int] | None, positions: Tensor, steps: int = 1
    ) -> KVStore:
        """Open a step: append ``steps`` positions to each ring of ``batch``, attend within each.

        Args:
            batch: Whose rings.
            starts: Each ring's first new position, where the host knows it.
            positions: The same on the device, [B] int64.
            steps: New positions a ring.
        """
        if not self._by_length:
            return _MaskedRings(self, batch, positions, steps)
        if self.keys.device.type != "cpu":
            return _KernelRings(self, batch, positions, steps)
        assert starts is not None
        return _FilledRings(self, batch, starts, steps)

    def clear(self, slot: int) -> None:
        """Forget what the slot's last owner left, where a mask alone would not."""
        if not self._by_length:
            self.kept_keys[:, slot].zero_()
            self.kept_values[:, slot].zero_()

    def write(self, slot: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Lay positions ``first``... into a slot's rings: each [layers, heads, n, head_dim]."""
        places = torch.arange(first, first + keys.shape[2], device=keys.device) % self.window
        # A few layers at a time: what becomes e4m3 takes several times its memory on the way.
        count = max(1, _POSITIONS_WRITTEN // keys.shape[2])
        for start in range(0, keys.shape[0], count):
            layers = slice(start, start + count)
            into = (slice(None), slice(None), places)
            self.kept_keys[layers, slot].put(into, keys[layers])
            self.kept_values[layers, slot].put(into, values[layers])


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


class _FilledRings:
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


class _MaskedRings:
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


class _KernelRings:
    """Attention for all slots at once, each over the filled part of its ring, in Triton.

    A step can be captured as with ``_MaskedRings``, and reads nothing that it does not attend to.
    """

    def __init__(self, cache: RingCache, batch: Batch, positions: Tensor, steps: int):
        from pipecat_personaplex.kernels import attention, rings

        self._attend = attention.attend
        self._cache, self._positions = cache, positions
        self._slots = _slots(batch.rows, positions.device)
        _, _, heads, window, head_dim = cache.keys.shape
        self._plan = rings.Plan.of(heads, window, head_dim, cache.keys.dtype)
        queries = positions.shape[0] * steps
        self._workspace = attention.Workspace.of(self._plan, queries, positions.device)
        self._turn: Rotation | None = None

    def rotate_by(self, turn: Rotation) -> None:
        self._turn = turn

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._cache.kept_keys[layer], self._cache.kept_values[layer]
        where = (keys, values, self._slots, self._positions)
        return self._attend(self._plan, q, k, v, *where, self._workspace, self._turn)


@lru_cache
def _kernels_run(
    device: torch.device,
    heads: int,
    window: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> bool:
    """Whether the kernels compile here and compute what they should; compiles them."""
    if not have_triton():
        _warn_without_triton()
        return False
    from pipecat_personaplex.kernels.attention_check import check

    try:
        check(heads, window, head_dim, dtype, kv_dtype, device)
    except Exception as error:  # whatever a compiler or a driver may raise
        logger.warning(
            "no attention kernel on {} for {} heads of {} in {}: {}: {}; PyTorch's attention "
            "over whole windows takes its place",
            device,
            heads,
            head_dim,
            kv_dtype,
            type(error).__name__,
            error,
        )
        return False
    return True


@lru_cache(maxsize=1)
def _warn_without_triton() -> None:
    logger.warning(
        "Triton is not installed: PyTorch's attention over whole windows takes the place of the "
        "attention kernel; pip install triton"
    )
