"""Callers' wordings of each intent, and stories that precede some questions.

``wordings.toml`` contains them, for training and held out for evaluation.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

_KNOWN = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_DISHES = ("classic", "spicy")
# Words that callers may add before and after any wording.
_OPENINGS = (
    *("So,", "And", "Okay,", "Well,", "Hi,", "Hello,", "Sorry,", "Please,", "Now,", "Good,"),
    *("Excuse me,", "One more thing,", "Can you help me?", "I have a question.", "Alright,"),
    *("Um,", "Oh,", "Yes,", "Hey,", "Listen,", "And then,", "Actually,", "By the way,"),
)
_ENDINGS = (
    *("please", "please", "please", "then", "now", "today", "tonight", "again", "for me"),
    *("thank you", "sir", "thanks", "too", "right now"),
)
_OPENING_SHARE, _ENDING_SHARE = 0.35, 0.3
_SENTENCES: dict[str, list[str]] = _KNOWN["sentences"]
_COMPOSED_SHARE = 0.5


def _wordings(part: str) -> dict[str, dict[str, list[str]]]:
    """Of each intent, the ``training`` and ``held_out`` wordings and parts of ``_SENTENCES``."""
    return {
        intent.format(dish=dish): {
            use: [text.format(dish=dish) for text in texts] for use, texts in uses.items()
        }
        for intent, uses in _KNOWN[part].items()
        for dish in (_DISHES if "{dish}" in intent else _DISHES[:1])
    }


SHARED, RESTAURANT, TEACHER = map(_wordings, ("shared", "restaurant", "teacher"))
INTENTS = SHARED | RESTAURANT | TEACHER


def wordings(intent: str, held_out: bool) -> list[str]:
    """The wordings of an intent, for training or for evaluation."""
    return INTENTS[intent]["held_out" if held_out else "training"]


def stories(held_out: bool) -> list[str]:
    """Statements before a question; the listener responds "uh-huh"."""
    texts: list[str] = _KNOWN["stories"]["held_out" if held_out else "training"]
    return texts


def sample_wording(intent: str, random: np.random.Generator) -> str:
    """Sample a training wording of an intent, whole or composed, with or without words around it.

    Never returns a held-out wording: one that results from added words is rejected.
    """
    while True:
        text = _sample_sentence(intent, random)
        if random.random() < _OPENING_SHARE:
            small = text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]
            text = f"{random.choice(_OPENINGS)} {small}"
        if random.random() < _ENDING_SHARE:
            text = f"{text[:-1]}, {random.choice(_ENDINGS)}{text[-1]}"
        if _plain(text) not in map(_plain, wordings(intent, held_out=True)):
            return text


def _sample_sentence(intent: str, random: np.random.Generator) -> str:
    """Sample a wording of an intent, or one of its parts in a sentence."""
    parts = _parts(INTENTS[intent])
    if not parts or random.random() >= _COMPOSED_SHARE:
        return str(random.choice(wordings(intent, held_out=False)))
    kind, part = parts[int(random.integers(len(parts)))]
    text = str(random.choice(_SENTENCES[kind])).format(part)
    return text[0].upper() + text[1:]


def _parts(uses: dict[str, list[str]]) -> list[tuple[str, str]]:
    """An intent's parts of sentences, each after the name of the sentences that it goes into."""
    return [(kind, part) for kind in _SENTENCES for part in uses.get(kind, [])]


def bare(word: str) -> str:
    """A word in lower case, without punctuation."""
    return word.lower().strip(".,?!")


def _plain(text: str) -> list[str]:
    return [bare(word) for word in text.split()]


def caller_words() -> list[str]:
    """Every word of the callers' training wordings, in a fixed order: first those of whole ones."""
    whole: Iterable[str] = [
        *(text for intent in INTENTS for text in wordings(intent, held_out=False)),
        *stories(held_out=False),
        *_OPENINGS,
        *_ENDINGS,
    ]
    composed: Iterable[str] = [
        *(text for kind in _SENTENCES for text in _SENTENCES[kind]),
        *(part for uses in INTENTS.values() for _, part in _parts(uses)),
    ]
    first, second = (
        {word for text in texts for word in _plain(text)} for texts in (whole, composed)
    )
    return sorted(first) + sorted(second - first - {"{}"})


@cache
def caller_word_numbers() -> dict[str, int]:
    """The index of each word in ``caller_words``."""
    return {word: index for index, word in enumerate(caller_words())}
