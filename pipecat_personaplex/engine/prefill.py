"""Keys and values of a prompt: a plain run of positions, for one caller at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.engine.prompt import PrefixKey, Prompt
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.lm import PersonaPlexLM


class PromptKVCache:
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


@dataclass(frozen=True)
class Prefix:
    """The state after a prompt, shared by every caller with the same persona.

    Attributes:
        keys: [layers, heads, n, head_dim], the last n positions of the prompt.
        values: The same shape.
        hidden: The normed hidden state of the last position, [dim].
        column: The first live column, [17] int64.
        length: P, the position at which the conversation starts.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor
    column: Tensor
    length: int

    @property
    def first(self) -> int:
        """Position of the first key kept."""
        return self.length - self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(t.nbytes for t in (self.keys, self.values, self.hidden, self.column))


class Prefill:
    """One prompt on its way through the temporal transformer.

    Args:
        lm: The language model.
        prompt: The prompt.
        device: Where the model is.
        window: Positions that one may attend to; the model's own if not given.
    """

    def __init__(
        self,
        lm: PersonaPlexLM,
        prompt: Prompt,
        device: torch.device,
        window: int | None = None,
    ):
        config = lm.config
        self.prompt = prompt
        self._lm = lm
        self._columns = prompt.columns.to(device)
        self._embeddings = prompt.embeddings
        if self._embeddings is not None:
            self._embeddings = self._embeddings.to(device, lm.dtype)
        self._cache = PromptKVCache(
            layers=config.num_layers,
            heads=config.num_heads,
            length=prompt.frames,
            window=window or config.window,
            head_dim=config.dim // config.num_heads,
            dtype=lm.dtype,
            device=device,
        )

    @torch.inference_mode()
    def advance(self, frames: int) -> Prefix | None:
        """Compute up to ``frames`` more positions; the prefix once all are done."""
        start = self._cache.filled
        stop = min(start + frames, self.prompt.frames)
        x = self._lm.embed(self._columns[start:stop])
        if self._embeddings is not None and start < len(self._embeddings):
            given = self._embeddings[start:stop]
            x[: len(given)] = given
        positions = torch.arange(start, stop, device=x.device)
        kv = self._cache.begin(stop - start)
        hidden = self._lm(x[None], positions[None], kv, last_only=True)
        if stop < self.prompt.frames:
            return None
        kept = slice(max(0, stop - self._cache.window), stop)
        keys, values = self._cache.keys[:, 0, :, kept], self._cache.values[:, 0, :, kept]
        return Prefix(
            # Where positions were left behind, clone: a view would keep them all in memory.
            keys=keys.clone() if kept.start else keys,
            values=values.clone() if kept.start else values,
            hidden=hidden[0, -1].clone(),
            column=self._columns[-1].clone(),
            length=stop,
        )


class PrefixCache:
    """Least recently used prefixes, bounded in bytes. Used by the model thread alone.

    Args:
        max_bytes: Bound; a prefix larger than this is never kept.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[PrefixKey, Prefix] = OrderedDict()
        self.nbytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: PrefixKey) -> bool:
        return key in self._entries

    def get(self, key: PrefixKey) -> Prefix | None:
        """The prefix, if it is kept."""
        prefix = self._entries.get(key)
        if prefix is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return prefix

    def put(self, key: PrefixKey, prefix: Prefix) -> None:
        """Keep a prefix, letting go of the least recently used ones."""
        if prefix.nbytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = prefix
        self.nbytes += prefix.nbytes
        while self.nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes
