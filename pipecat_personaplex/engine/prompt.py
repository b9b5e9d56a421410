"""From a persona to the state a call starts in.

A prompt is fully forced, so its keys and values depend on voice and text alone: they are computed
in parallel, a run of positions at a time, without depth steps, and kept for the next caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from loguru import logger
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    DELAYS,
    MAX_PROMPT_FRAMES,
    STREAMS,
    TEXT,
    TEXT_EPAD,
    TEXT_PAD,
    USER_CODES,
)
from pipecat_personaplex.errors import PromptTooLong
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import prompt_columns

if TYPE_CHECKING:  # so that the step, and what measures it, needs none of the audio libraries
    from pipecat_personaplex.checkpoint.voices import Voice

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
    limit = max(config.lm.window, MAX_PROMPT_FRAMES)
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
