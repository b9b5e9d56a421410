"""The scores of one item: which rule applies to which event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.eval.items import Event
from pipecat_personaplex.eval.scoring.backchannels import score_narration
from pipecat_personaplex.eval.scoring.overlap import score_ignored, score_overlap, score_silence
from pipecat_personaplex.eval.scoring.spans import Span
from pipecat_personaplex.eval.scoring.takeover import (
    Scores,
    score_interruption,
    score_pause,
    score_turn_end,
    tail_words,
)
from pipecat_personaplex.words import Word

Rules = Literal["compat", "fixed"]
RULES: tuple[Rules, ...] = ("compat", "fixed")
_UNWANTED = ("backchannel", "aside", "third_party")


@dataclass(frozen=True)
class Heard:
    """What was heard of the agent in one call.

    Attributes:
        words: Its words, in order of time.
        spans: Spans of its speech.
        compat_spans: The same from a detector that takes 24 kHz for 16 kHz: times are 1.5 times as
            large.
        seconds: Length of the recording.
        tails: For an interruption (by its index among the events), words that a transcriber finds
            in the audio after it; where it is missing, they are taken from ``words``.
    """

    words: Sequence[Word]
    spans: Sequence[Span]
    compat_spans: Sequence[Span]
    seconds: float
    tails: dict[int, Sequence[Word]]


def score_item(
    events: Sequence[Event],
    heard: Heard,
    rules: Rules,
    human: Sequence[float] | None = None,
) -> list[tuple[str, float]]:
    """Score every event of an item.

    Args:
        events: What happens in the recording, in order of time.
        heard: What the agent said, and when.
        rules: ``compat`` or ``fixed``.
        human: Distribution of people's backchannels in this recording, if known.

    Returns:
        Pairs of a metric, such as ``turn_end.tor``, and its value: one for each event that has it.
    """
    results: list[tuple[str, float]] = []
    kinds: set[str] = set()
    for index, event in enumerate(events):
        if rules == "compat" and event.kind in kinds:
            continue  # the published scripts read the first annotation of a file
        kinds.add(event.kind)
        until = _until(events, index, heard.seconds)
        scores = _score_event(event, index, heard, until, rules == "compat", human)
        results += [(f"{event.kind}.{name}", value) for name, value in scores.items()]
    return results


def _until(events: Sequence[Event], index: int, seconds: float) -> float:
    """When the reaction to an event ends: where the next event starts, or with the recording."""
    later = [event.start for event in events[index + 1 :] if event.start > events[index].end]
    return min([seconds, *later])


def _score_event(
    event: Event,
    index: int,
    heard: Heard,
    until: float,
    compat: bool,
    human: Sequence[float] | None,
) -> Scores:
    if event.kind == "pause":
        return score_pause(heard.words, event, compat)
    if event.kind == "turn_end":
        return score_turn_end(heard.words, event, until, compat)
    if event.kind == "narration":
        if compat:
            return score_narration(heard.words, heard.compat_spans, heard.seconds, human, True)
        # An answer to the finished narration is no takeover.
        during = [span for span in heard.spans if span.start < event.end and span.end > event.start]
        return score_narration(heard.words, during, event.end - event.start, human, False)
    if event.kind == "interruption":
        tail = heard.tails[index] if index in heard.tails else tail_words(heard.words, event)
        scores = score_interruption(heard.words, tail, heard.spans, event, until, compat)
        return score_overlap(heard.spans, event) | scores if compat else scores
    if event.kind in _UNWANTED:
        scores = score_overlap(heard.spans, event)
        return scores if compat else scores | score_ignored(heard.spans, event, until)
    return score_silence(heard.spans, event)
