"""Keys and values of running calls: a ring per slot.

A ring of ``window`` places needs no mask of age: place ``p % window`` holds position p, and what
has left the window has been overwritten. A frame of several positions (Mimi's two) is written
first and then attended to, so that even its first position no longer sees what its last one
replaced; this is what the reference computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.ring_attention import (
    MaskedRingAttention,
    SlicedRingAttention,
    TritonRingAttention,
)
from pipecat_personaplex.kernels.availability import _kernels_run
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.quantization.kv import KVTensor

# Keys laid into a slot at once, of all layers.
_POSITIONS_WRITTEN = 4096


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
            return MaskedRingAttention(self, batch, positions, steps)
        if self.keys.device.type != "cpu":
            return TritonRingAttention(self, batch, positions, steps)
        assert starts is not None
        return SlicedRingAttention(self, batch, starts, steps)

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
