"""From a persona to the state a call starts in.

A prompt is fully forced, so its keys and values depend on voice and text alone: they are computed
in parallel, a run of positions at a time, without depth steps, and kept for the next caller.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from loguru import logger
from torch import Tensor

from pipecat_personaplex.architecture import ModelConfig
from pipecat_personaplex.config import (
    AGENT_CODES,
    DELAYS,
    RELEASED_WINDOW,
    STREAMS,
    TEXT,
    TEXT_EPAD,
    TEXT_PAD,
    USER_CODES,
)
from pipecat_personaplex.engine.run_cache import RunCache
from pipecat_personaplex.engine.tokens import prompt_columns
from pipecat_personaplex.errors import PromptTooLong
from pipecat_personaplex.models.lm import PersonaPlexLM

if TYPE_CHECKING:  # so that the step, and what measures it, needs none of the audio libraries
    from pipecat_personaplex.engine.voices import Voice

SILENCE_FRAMES = 6
_SYSTEM_TAG = "<system>"
# Unhurried English: about 15 characters a second.
_CHARACTERS_PER_FRAME = 1.2
_PAUSES = ".!?:;,"
_PAUSE_FRAMES = 4

PrefixKey = tuple[str, tuple[int, ...]]
"""A voice's digest and the text prompt's tokens."""


class Tokenizer(Protocol):
    """What is used of SentencePiece."""

    def encode(self, text: str) -> list[int]:
        """Text to token ids."""
        ...


def text_prompt_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a text prompt between system tags; none for an empty one."""
    text = text.strip()
    if not text:
        return []
    if not (text.startswith(_SYSTEM_TAG) and text.endswith(_SYSTEM_TAG)):
        text = f"{_SYSTEM_TAG} {text} {_SYSTEM_TAG}"
    return list(tokenizer.encode(text))


def speech_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Text tokens that say ``text`` at a speaking pace, one a frame.

    As the model spaces its own words: a word's pieces at its onset, then padding for as long as
    it takes to say, an end-of-padding token before the next word, a pause after a sentence.
    """
    tokens: list[int] = []
    for word in text.split():
        pieces = list(tokenizer.encode(word))
        lasts = round(len(word) / _CHARACTERS_PER_FRAME)
        if word[-1] in _PAUSES:
            lasts += _PAUSE_FRAMES
        tokens += [TEXT_EPAD, *pieces, *[TEXT_PAD] * (lasts - len(pieces) - 1)]
    return tokens


@dataclass(frozen=True)
class Prompt:
    """A persona laid into the token grid.

    Attributes:
        key: What the state after the prompt depends on.
        columns: [P + 1, 17] int64; the last one is the first live column, not yet complete.
        embeddings: Inputs that stand in for the first columns, [N, dim], for preset voices.
    """

    key: PrefixKey
    columns: Tensor
    embeddings: Tensor | None

    @property
    def frames(self) -> int:
        """P: how many prompt frames there are."""
        return self.columns.shape[0] - 1


def build_prompt(voice: Voice, text_tokens: list[int], config: ModelConfig) -> Prompt:
    """Lay out voice, silence, text and silence, all tokens forced, the caller's stream a sine.

    Raises:
        PromptTooLong: More frames than the released model attends to.
    """
    text = torch.tensor(
        [
            *[TEXT_PAD] * (voice.frames + SILENCE_FRAMES),
            *text_tokens,
            *[TEXT_PAD] * SILENCE_FRAMES,
        ]
    )
    # A small checkpoint's window may be shorter than any persona, as in the reference, where
    # the prompt then slides out of it; what no checkpoint can hold is refused.
    limit = max(config.lm.window, RELEASED_WINDOW)
    if len(text) > limit:
        raise PromptTooLong(len(text), limit)
    if len(text) > config.lm.window:
        logger.debug(
            "the prompt takes {} frames and the model attends to {} here: its start is lost",
            len(text),
            config.lm.window,
        )
    frames = torch.empty(len(text), STREAMS, dtype=torch.int64)
    frames[:, TEXT] = text
    frames[:, AGENT_CODES] = torch.tensor(config.silence_codes)
    frames[:, USER_CODES] = torch.tensor(config.sine_codes)
    if voice.codes is not None:
        frames[: voice.frames, AGENT_CODES] = voice.codes
    columns = prompt_columns(frames, config)
    if voice.cache is not None:
        # Position p is column p % 4 of a preset's cache. It was saved when position N was
        # complete and, of position N + 1, the delayed streams.
        last = voice.frames - 1
        delayed = torch.tensor(DELAYS, dtype=torch.bool)
        columns[last] = voice.cache[:, last % 4]
        columns[last + 1, delayed] = voice.cache[delayed, (last + 1) % 4]
    return Prompt((voice.digest, tuple(text_tokens)), columns, voice.embeddings)


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
        self._cache = RunCache(
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
