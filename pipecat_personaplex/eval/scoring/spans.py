"""Spans of time in seconds, and utterances: words without a long gap between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipecat_personaplex.words import Word

UTTERANCE_GAP = 1.0
"""Seconds without a word that end an utterance."""


class Span(NamedTuple):
    """A span of speech, in seconds from the start of the recording."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.end - self.start


def merge(spans: Iterable[Span], gap: float) -> list[Span]:
    """Join spans that overlap or are at most ``gap`` seconds apart; sorted by start."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start - merged[-1].end <= gap:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def utterances(words: Sequence[Word], gap: float = UTTERANCE_GAP) -> list[list[Word]]:
    """Group words: a gap of more than ``gap`` seconds starts a new utterance."""
    groups: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.start):
        if groups and word.start - max(each.end for each in groups[-1]) <= gap:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def extent(words: Sequence[Word]) -> Span:
    """From the start of the first word to the latest end; the words must not be empty."""
    return Span(min(word.start for word in words), max(word.end for word in words))


def words_within(words: Sequence[Word], start: float, end: float) -> list[Word]:
    """Words that start in [start, end)."""
    return [word for word in words if start <= word.start < end]


def words_after(words: Sequence[Word], time: float) -> list[Word]:
    """Words that end after ``time``; a word that is being spoken at ``time`` starts there."""
    return [Word(word.word, max(word.start, time), word.end) for word in words if word.end > time]
