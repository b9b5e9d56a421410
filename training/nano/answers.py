"""What the agent said, and whether it is the right answer."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache

import numpy as np

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE, TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.engine import Engine
from training.nano import script

# Minimum similarity for a text to match a sentence of the script.
_MIN_SIMILARITY = 0.6


def agent_text_between(engine: Engine, talk: Conversation, start: float, end: float) -> str:
    """The agent's text between two times of the call, in seconds."""
    tokens = [
        frame.text_token
        for frame in talk.frames
        if start <= frame.index * FRAME_SAMPLES / SAMPLE_RATE < end
        and frame.text_token not in (TEXT_EPAD, TEXT_PAD)
    ]
    text: str = engine.checkpoint.tokenizer.decode(tokens)
    return text.strip()


def nearest_sentence(text: str, sentences: Sequence[str]) -> str | None:
    """The most similar sentence of the script; None if none is similar enough."""
    scores = [difflib.SequenceMatcher(None, text, each).ratio() for each in sentences]
    best = int(np.argmax(scores))
    return sentences[best] if scores[best] >= _MIN_SIMILARITY else None


def without_name(sentence: str) -> str:
    """A sentence with ``*`` in place of the agent's name."""
    for name in (*script.NAMES, "{name}"):
        sentence = sentence.replace(f" {name}", " *")
    return sentence


@cache
def _sentences() -> list[str]:
    return list(script.all_sentences())


def is_right(character: script.Character, intent: str, text: str) -> bool:
    """Whether a text is the character's answer to an intent, with whatever name."""
    found = nearest_sentence(text, _sentences())
    return found is not None and without_name(found) == without_name(character.answer(intent))
