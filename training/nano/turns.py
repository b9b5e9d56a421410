"""Turns of callers: a question in a synthesised voice, with a pause or after a story."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr

from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from training.nano import wordings
from training.nano.espeak import Pcm, Utterance

# A caller who pauses after one of these words has not finished the sentence.
_UNFINISHED = frozenset(
    "a an the is are do does can could i i'd i'll you we what how which of to by with me my your "
    "would many long fast much in and or not at when why where on have want like for give tell "
    "have should very".split()
)
_PAUSE_SHARE = 0.4
_STORY_SHARE = 0.08
SPEEDS = (0.86, 1.16)
"""Range of the factors by which turns are played faster or slower."""
_FILLERS = ("Um,", "Well,", "So,", "Er,", "Uh,")

Say = Callable[[str], Utterance]


class Person(Protocol):
    """A voice of any synthesiser."""

    def begin_turn(self, random: np.random.Generator) -> Say:
        """How this person says the words of one turn: no two turns are quite alike."""
        ...


@dataclass(frozen=True)
class Turn:
    """The audio of a caller's turn; times are in seconds from its start.

    Attributes:
        pcm: From the first word to the last.
        pause: Start and end of a pause inside the turn; None without one.
        words: Each word and its end.
        story_end: End of a story that precedes the question; None without one.
    """

    pcm: Pcm
    pause: tuple[float, float] | None
    words: list[tuple[str, float]]
    story_end: float | None = None


def speak_turn(text: str, person: Person, random: np.random.Generator, pause: bool) -> Turn:
    """Synthesise a turn; with ``pause``, pause for 0.3 to 0.9 s in mid-sentence."""
    say = person.begin_turn(random)
    words = text.split()
    cuts = [index for index in range(1, len(words)) if words[index - 1].lower() in _UNFINISHED]
    if pause and cuts:
        cut = cuts[int(random.integers(len(cuts)))]
        return _in_two(" ".join(words[:cut]) + ",", " ".join(words[cut:]), say, random)
    if pause:
        return _in_two(str(random.choice(_FILLERS)), text, say, random)
    whole = say(text)
    return Turn(whole.pcm, None, _word_ends(whole, 0.0))


def tell_story(story: str, text: str, person: Person, random: np.random.Generator) -> Turn:
    """Synthesise a story and, after a short pause, the question that follows it."""
    turn = _in_two(story, text, person.begin_turn(random), random, breath=(0.1, 0.25))
    assert turn.pause is not None
    return Turn(turn.pcm, None, turn.words, story_end=turn.pause[0])


def _in_two(
    first: str,
    second: str,
    say: Say,
    random: np.random.Generator,
    breath: tuple[float, float] = (0.3, 0.9),
) -> Turn:
    before, after = say(first), say(second)
    gap = np.zeros(int(random.uniform(*breath) * SAMPLE_RATE), np.float32)
    resumed = before.seconds + len(gap) / SAMPLE_RATE
    return Turn(
        np.concatenate([before.pcm, gap, after.pcm]),
        (before.seconds, resumed),
        _word_ends(before, 0.0) + _word_ends(after, resumed),
    )


def _word_ends(utterance: Utterance, start: float) -> list[tuple[str, float]]:
    ends = [onset for _, onset in utterance.words[1:]] + [utterance.seconds]
    return [(word, start + end) for (word, _), end in zip(utterance.words, ends, strict=True)]


def word_frames(turn: Turn, lead: float) -> list[tuple[int, int]]:
    """The frames in which a turn's words have just ended.

    Args:
        turn: The turn.
        lead: Seconds before its first word.

    Returns:
        For each known word, the first frame after it and its index in ``wordings.caller_words``.
    """
    known = wordings.caller_word_numbers()
    return [
        (-int(-(lead + end) // FRAME_SECONDS), known[wordings.bare(word)])
        for word, end in turn.words
        if wordings.bare(word) in known
    ]


def change_speed(turn: Turn, factor: float) -> Turn:
    """Play a turn faster, with a higher pitch and a shorter vocal tract, or slower.

    Args:
        turn: The turn.
        factor: 1.1 is 10 % faster and higher.
    """
    pcm = soxr.resample(turn.pcm, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ")
    return Turn(
        pcm.astype(np.float32),
        turn.pause and (turn.pause[0] / factor, turn.pause[1] / factor),
        [(word, end / factor) for word, end in turn.words],
        turn.story_end and turn.story_end / factor,
    )


def sample_turn(intent: str, person: Person, random: np.random.Generator) -> Turn:
    """Speak a training wording of an intent: plainly, with a pause, or after a story."""
    text = wordings.sample_wording(intent, random)
    kind = random.random()
    if kind < _STORY_SHARE:
        story = str(random.choice(wordings.stories(held_out=False)))
        return tell_story(story, text, person, random)
    return speak_turn(text, person, random, pause=kind < _STORY_SHARE + _PAUSE_SHARE)
