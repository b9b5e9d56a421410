"""What the agent said, and whether it is the right answer."""

from __future__ import annotations

import difflib
import re
from functools import cache

import numpy as np

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE, TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.engine import Engine
from training.nano import script
from training.nano.names import HELD_OUT_NAMES, NAMES

# Minimum similarity for a text to match a line of the script.
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


_NAME = re.compile(rf" (?:{'|'.join((*NAMES, *HELD_OUT_NAMES))})\b")


def names_in(text: str) -> set[str]:
    """The names that the agent may have, of those in a text."""
    return {*NAMES, *HELD_OUT_NAMES} & set(re.findall(r"[A-Za-z]+", text))


def without_name(text: str) -> str:
    """A text with ``*`` in place of the agent's name."""
    return _NAME.sub(" *", text)


@cache
def _lines(role: script.RoleName) -> frozenset[str]:
    """The lines of a role, whatever name is in them."""
    return frozenset(without_name(line.text) for line in script.lines(role))


@cache
def nearest_line(text: str) -> str | None:
    """The script's line that is most similar to a text, with ``*`` in place of the agent's name.

    None if none is similar enough. Prices and other facts must be the same.
    """
    text = without_name(text)
    known = sorted(frozenset[str]().union(*map(_lines, script.ROLES)))
    if text in known:
        return text
    scores = [difflib.SequenceMatcher(None, text, each).ratio() for each in known]
    best = int(np.argmax(scores))
    return known[best] if scores[best] >= _MIN_SIMILARITY else None


def is_right(character: script.Character, intent: str, text: str) -> bool:
    """Whether a text is the character's answer to an intent, with whatever name."""
    return nearest_line(text) == without_name(character.answer(intent))


def is_of_another_role(role: script.RoleName, text: str) -> bool:
    """Whether a text is a line that only the other role has."""
    line = nearest_line(text)
    others = (_lines(other) for other in script.ROLES if other != role)
    return line is not None and line not in _lines(role) and any(line in each for each in others)
