"""Builds a persona's prompt: which tokens the model reads before the conversation starts.

This module runs on the host and needs no model: it tokenises text and arranges voice, text and
silence in the token grid. ``prefill`` runs the model over the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    DELAYS,
    MAX_PROMPT_FRAMES,
    SILENCE_FRAMES,
    STREAMS,
    TEXT,
    TEXT_PAD,
    USER_CODES,
)
from pipecat_personaplex.errors import ConfigError, PromptTooLong
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column, prompt_columns
from pipecat_personaplex.words import spoken_words

if TYPE_CHECKING:  # at run time it would import the audio libraries, which the step does not need
    from pipecat_personaplex.checkpoint.voices import Voice

_SYSTEM_TAG = "<system>"

PrefixKey = tuple[str, tuple[int, ...]]
"""A voice's digest and the text prompt's tokens."""


class Tokenizer(Protocol):
    """The part of ``sentencepiece.SentencePieceProcessor`` that prompts and speech use."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...


def text_prompt_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokenise a text prompt between system tags; an empty prompt has no tokens."""
    text = text.strip()
    if not text:
        return []
    if not (text.startswith(_SYSTEM_TAG) and text.endswith(_SYSTEM_TAG)):
        text = f"{_SYSTEM_TAG} {text} {_SYSTEM_TAG}"
    return list(tokenizer.encode(text))


def speech_words(text: str, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Split a text to say into the words of ``spoken_words``, with their text tokens.

    Each word is tokenised by itself, so that the model decides when the next one starts. Words
    that the tokeniser cannot represent are left out.
    """
    words = []
    for word in spoken_words(text):
        # Padding and control tokens would be read as pauses.
        pieces = [piece for piece in tokenizer.encode(word) if piece > TEXT_PAD]
        if pieces:
            words.append((word, pieces))
    return words


@dataclass(frozen=True)
class Prompt:
    """A persona's prompt of P frames, arranged in the token grid.

    Attributes:
        key: Identifies the content: equal keys give equal states after the prompt.
        columns: Token columns, [P + 1, 17] int64. The last is the first column of the
            conversation, of which only the delayed streams are known.
        embeddings: For preset voices, the input embeddings [N, dim] that replace those of the
            first N columns; else None.
    """

    key: PrefixKey
    columns: Tensor
    embeddings: Tensor | None

    @property
    def frames(self) -> int:
        """P, the number of prompt frames (80 ms)."""
        return self.columns.shape[0] - 1


def build_prompt(voice: Voice, text_tokens: list[int], config: ModelConfig) -> Prompt:
    """Arrange voice, silence, text and silence in the token grid.

    The agent's stream has the voice's codes, then silence; the user's stream has a sine tone
    throughout, as in the reference.

    Args:
        voice: The agent's voice.
        text_tokens: The tokenised text prompt.
        config: The checkpoint's configuration.

    Raises:
        ConfigError: The voice is that of a model without personas, and there is a text prompt.
        PromptTooLong: The prompt has more than ``max(window, MAX_PROMPT_FRAMES)`` frames. A
            checkpoint with a smaller window forgets the start of a prompt, as in the reference.
    """
    if voice.promptless and text_tokens:
        raise ConfigError(
            "this checkpoint is Moshi, which takes no text prompt; leave the text prompt empty, or "
            "load a PersonaPlex checkpoint"
        )
    silence = 0 if voice.promptless else SILENCE_FRAMES
    text = torch.tensor(
        [*[TEXT_PAD] * (voice.frames + silence), *text_tokens, *[TEXT_PAD] * silence]
    )  # [P]
    limit = max(config.lm.window, MAX_PROMPT_FRAMES)
    if len(text) > limit:
        raise PromptTooLong(len(text), limit)
    frames = torch.empty(len(text), STREAMS, dtype=torch.int64)  # [P, 17]
    frames[:, TEXT] = text
    frames[:, AGENT_CODES] = torch.tensor(config.silence_codes)
    frames[:, USER_CODES] = torch.tensor(config.sine_codes)
    if voice.codes is not None:
        frames[: voice.frames, AGENT_CODES] = voice.codes
    columns = prompt_columns(frames, config)  # [P + 1, 17]
    if voice.cache is not None:
        # Column p % 4 of a preset's cache holds position p. The preset was stored when position
        # N was complete; of position N + 1 it has only the delayed streams.
        last = voice.frames - 1
        delayed = torch.tensor(DELAYS, dtype=torch.bool)
        columns[last] = voice.cache[:, last % 4]
        columns[last + 1, delayed] = voice.cache[delayed, (last + 1) % 4]
    return Prompt((voice.digest, tuple(text_tokens)), columns, voice.embeddings)


def extend_prompt(prompt: Prompt, frames: Tensor, config: ModelConfig) -> Prompt:
    """Append frames of a call to a prompt, as if they had been part of it.

    A call is in the same delayed grid as its prompt: of frame f of the call, column P + f holds the
    streams without delay and column P + f + 1 the delayed ones. Column P has its delayed streams
    from the prompt.

    Args:
        prompt: The prompt, P frames; may be the result of an earlier call of this function.
        frames: The 17 tokens of each frame, [K, 17] int64.
        config: The model, for its initial tokens.

    Returns:
        A prompt of P + K frames. Its key is still the one of the prompt alone.
    """
    first, last = prompt.frames, prompt.frames + len(frames)
    delayed = torch.tensor(DELAYS, dtype=torch.bool)
    columns = torch.cat((prompt.columns, initial_column(config).repeat(len(frames), 1)))
    columns[first:last, ~delayed] = frames[:, ~delayed]
    columns[first + 1 :, delayed] = frames[:, delayed]
    return Prompt(prompt.key, columns, prompt.embeddings)  # [P + K + 1, 17]
