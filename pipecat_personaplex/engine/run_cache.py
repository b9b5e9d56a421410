"""Keys and values of a prompt: a plain run of positions, for one caller at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.models.attention import KVStore


class RunCache:
    """Keys and values of a prompt, computed in runs of consecutive positions.

    Args:
        layers: Transformer layers.
        heads: Attention heads.
        length: Positions in all.
        window: Positions that one may attend to, itself included.
        head_dim: Features a head.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        length: int,
        window: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.window = window
        self.filled = 0
        shape = (layers, 1, heads, length, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self._mask: Tensor | None = None
        self._oldest = self._end = 0

    def begin(self, steps: int) -> KVStore:
        """Open a run of the next ``steps`` positions."""
        first, self._end = self.filled, self.filled + steps
        self.filled = self._end
        self._oldest = max(0, first + 1 - self.window)
        # A run that starts at 0 within the window is plainly causal, which needs no mask.
        self._mask = None
        if first > 0 or self._end > self.window:
            queries = torch.arange(first, self._end, device=self.keys.device)[:, None]
            seen = torch.arange(self._oldest, self._end, device=self.keys.device)
            self._mask = (seen <= queries) & (seen > queries - self.window)
        return self

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each [1, H, T, D] -> [1, H, T, D]; ``q`` may be the last positions only."""
        keys, values = self.keys[layer], self.values[layer]
        first = self._end - k.shape[2]
        keys[:, :, first : self._end] = k
        values[:, :, first : self._end] = v
        past = slice(self._oldest, self._end)
        return F.scaled_dot_product_attention(
            q,
            keys[:, :, past],
            values[:, :, past],
            attn_mask=None if self._mask is None else self._mask[-q.shape[2] :],
            # The last position alone sees all there is.
            is_causal=self._mask is None and q.shape[2] > 1,
        )
