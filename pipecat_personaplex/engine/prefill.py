"""Computes a prompt's keys and values, and caches them for the next session with the same persona.

All tokens of a prompt are known in advance, so its positions are computed in parallel, one chunk
at a time between the steps of running sessions, and without the depth transformer. In this module:
``Prefill`` computes one prompt; ``PromptKVCache`` holds its keys and values meanwhile; ``Prefix``
is the result; ``PrefixCache`` stores results by persona. ``prompt`` builds the prompt itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.engine.prompt import PrefixKey, Prompt, extend_prompt
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.lm import PersonaPlexLM


class PromptKVCache:
    """Keys and values of one prompt at consecutive positions, filled chunk by chunk.

    Args:
        layers: Number of transformer layers.
        heads: Number of attention heads.
        length: Number of positions, P.
        window: Positions that one position attends to, itself included.
        head_dim: Features per head.
        dtype: Type of the keys and values.
        device: Device of the keys and values.
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
        self.filled = 0  # positions computed so far
        shape = (layers, 1, heads, length, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        # Of the current chunk: its mask, its oldest visible position, its end.
        self._mask: Tensor | None = None
        self._oldest = self._end = 0

    def fill(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Take over the last n of the first ``length`` positions: [layers, heads, n, head_dim].

        Positions before them must be further back than the window.
        """
        positions = slice(length - keys.shape[2], length)
        self.keys[:, 0, :, positions] = keys
        self.values[:, 0, :, positions] = values
        self.filled = length

    def begin(self, steps: int) -> KVStore:
        """Start a chunk: the next ``steps`` positions."""
        first, self._end = self.filled, self.filled + steps
        self.filled = self._end
        self._oldest = max(0, first + 1 - self.window)
        # A chunk that starts at 0 and fits the window is plainly causal and needs no mask.
        self._mask = None
        if first > 0 or self._end > self.window:
            queries = torch.arange(first, self._end, device=self.keys.device)[:, None]
            keys = torch.arange(self._oldest, self._end, device=self.keys.device)
            # [queries, keys]: causal, and no further back than the window.
            self._mask = (keys <= queries) & (keys > queries - self.window)
        return self

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store a layer's keys and values of the chunk, and attend to all visible positions.

        Args:
            layer: Index of the layer.
            q: Queries, [1, H, Q, D]: of the whole chunk, or of its last Q positions only.
            k: Keys of the chunk, [1, H, T, D].
            v: Values of the chunk, [1, H, T, D].

        Returns:
            [1, H, Q, D].
        """
        keys, values = self.keys[layer], self.values[layer]
        first = self._end - k.shape[2]
        keys[:, :, first : self._end] = k
        values[:, :, first : self._end] = v
        visible = slice(self._oldest, self._end)
        return F.scaled_dot_product_attention(
            q,
            keys[:, :, visible],
            values[:, :, visible],
            attn_mask=None if self._mask is None else self._mask[-q.shape[2] :],
            # is_causal aligns queries and keys at the start; the last position alone sees all keys.
            is_causal=self._mask is None and q.shape[2] > 1,
        )


@dataclass(frozen=True)
class Prefix:
    """The model's state after a prompt, shared by all sessions with the same persona.

    Attributes:
        keys: Keys of the last n positions of the prompt, [layers, heads, n, head_dim].
        values: Values of the same positions, of the same shape.
        hidden: Normed hidden state of the last position, [dim].
        column: First token column of the conversation, [17] int64; its delayed streams are known.
        length: P, the position at which the conversation starts.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor
    column: Tensor
    length: int

    @property
    def first(self) -> int:
        """Position of the first key."""
        return self.length - self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(t.nbytes for t in (self.keys, self.values, self.hidden, self.column))


class Prefill:
    """Runs the temporal transformer over one prompt, chunk by chunk.

    Args:
        lm: The language model.
        prompt: The prompt.
        device: Device of the model.
        window: Positions that one position attends to; the model's own window if not given.
        start: The state after the first positions of the prompt, if it has been computed before
            with the same window.
        capacity: Frames to which ``extend`` may let the prompt grow; its own length if not given.
    """

    def __init__(
        self,
        lm: PersonaPlexLM,
        prompt: Prompt,
        device: torch.device,
        window: int | None = None,
        *,
        start: Prefix | None = None,
        capacity: int = 0,
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
            length=max(capacity, prompt.frames),
            window=window or config.window,
            head_dim=config.dim // config.num_heads,
            dtype=lm.dtype,
            device=device,
        )
        self._hidden: Tensor | None = None  # [dim], of the last position computed
        if start is not None:
            self._cache.fill(start.keys, start.values, start.length)
            self._hidden = start.hidden

    def extend(self, frames: Tensor, config: ModelConfig) -> None:
        """Append frames of a call, [K, 17] int64 on the host; see ``extend_prompt``."""
        if len(frames):
            self.prompt = extend_prompt(self.prompt, frames, config)
            # Columns before the last one have not changed, so computed positions stay valid.
            self._columns = self.prompt.columns.to(self._columns.device)

    @torch.inference_mode()
    def advance(self, frames: int) -> Prefix | None:
        """Compute up to ``frames`` more positions.

        Returns:
            The state after the prompt if all positions are computed, else None.
        """
        start = self._cache.filled
        stop = min(start + frames, self.prompt.frames)
        if start < stop:
            self._compute(start, stop)
        if stop < self.prompt.frames:
            return None
        assert self._hidden is not None, "a prompt has at least one frame"
        # The conversation never attends further back than the window.
        window = slice(max(0, stop - self._cache.window), stop)
        keys, values = self._cache.keys[:, 0, :, window], self._cache.values[:, 0, :, window]
        return Prefix(
            # Clone if positions were cut off: a view would keep them in memory.
            keys=keys.clone() if window.start else keys,
            values=values.clone() if window.start else values,
            hidden=self._hidden,
            column=self._columns[-1].clone(),
            length=stop,
        )

    def _compute(self, start: int, stop: int) -> None:
        """Run positions ``start`` to ``stop`` - 1."""
        x = self._lm.embed(self._columns[start:stop])  # [T, 17] -> [T, dim]
        if self._embeddings is not None and start < len(self._embeddings):
            preset = self._embeddings[start:stop]  # a preset voice replaces the first embeddings
            x[: len(preset)] = preset
        positions = torch.arange(start, stop, device=x.device)
        kv = self._cache.begin(stop - start)
        # [1, T, dim] -> [1, 1, dim]
        hidden = self._lm(x[None], positions[None], kv, last_only=True)
        self._hidden = hidden[0, -1].clone()


class PrefixCache:
    """Least-recently-used cache of prefixes, bounded in bytes. Used by the model thread only.

    Args:
        max_bytes: Upper bound. A prefix larger than this is never stored.
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
        """The stored prefix of a prompt, or None. Counts a hit or a miss."""
        prefix = self._entries.get(key)
        if prefix is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return prefix

    def put(self, key: PrefixKey, prefix: Prefix) -> None:
        """Store a prefix, and evict the least recently used ones that no longer fit."""
        if prefix.nbytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = prefix
        self.nbytes += prefix.nbytes
        while self.nbytes > self._max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self.nbytes -= evicted.nbytes
