"""Backchannels of the agent while the caller narrates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipecat_personaplex.eval.scoring.spans import Span
from pipecat_personaplex.eval.scoring.takeover import Scores
from pipecat_personaplex.words import Word

_TURN_SECONDS = 3.0  # a longer span is a turn, whatever its words
_BIN_SECONDS = 0.2
_SHORT_SECONDS = 1.0
_SHORT_WORDS, _MOST_WORDS = 2, 3
_EPSILON = 1e-10  # without it, the distance to an empty histogram is NaN


def score_narration(
    words: Sequence[Word],
    spans: Sequence[Span],
    seconds: float,
    human: Sequence[float] | None,
    compat: bool,
) -> Scores:
    """``tor``, ``frequency`` (backchannels a second) and ``jsd`` of one narration.

    A span of at most 3 s counts as a backchannel. ``compat`` lets the last span decide about the
    takeover, as the published script does. ``fixed`` counts a takeover in any span, and only spans
    that are no takeover as backchannels.

    Args:
        words: Words of the agent.
        spans: Spans of its speech during the narration. For ``compat``, all spans of the recording,
            at the times that a detector finds which takes 24 kHz for 16 kHz.
        seconds: Length of the narration; for ``compat``, of the recording.
        human: Distribution of people's backchannels over bins of 200 ms; None leaves out ``jsd``.
        compat: The rule set.
    """
    taken, heard = False, []
    for span in spans:
        if span.seconds > _TURN_SECONDS:
            taken = True
            break
        is_turn = _is_turn(span, words)
        taken = is_turn if compat else taken or is_turn
        if compat or not is_turn:
            heard.append(span)
    scores = {"tor": float(taken), "frequency": len(heard) / seconds if seconds > 0 else 0.0}
    if human is not None:
        scores["jsd"] = divergence(heard, seconds, human)
    return scores


def _is_turn(span: Span, words: Sequence[Word]) -> bool:
    count = sum(word.start <= span.end and word.end > span.start for word in words)
    if count > _MOST_WORDS:
        return True
    return not (span.seconds < _SHORT_SECONDS and count <= _SHORT_WORDS)


def divergence(spans: Sequence[Span], seconds: float, human: Sequence[float]) -> float:
    """Jensen-Shannon distance (natural logarithm) of the times of backchannels; 1 without any."""
    if not spans:
        return 1.0
    counts = [_EPSILON] * (int(seconds / _BIN_SECONDS) + 1)
    for span in spans:
        last = min(int(span.end / _BIN_SECONDS), len(counts) - 1)
        for index in range(int(span.start / _BIN_SECONDS), last + 1):
            counts[index] += 1
    # Both must have as many bins: the shorter one has none of its backchannels in the rest.
    length = max(len(counts), len(human))
    ours = _normalized([*counts, *[_EPSILON] * (length - len(counts))])
    theirs = _normalized([*human, *[0.0] * (length - len(human))])
    middle = [(a + b) / 2 for a, b in zip(ours, theirs, strict=True)]
    return math.sqrt(max(0.0, (_relative(ours, middle) + _relative(theirs, middle)) / 2))


def _normalized(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values] if total > 0 else list(values)


def _relative(ours: Sequence[float], middle: Sequence[float]) -> float:
    """Kullback-Leibler divergence; a bin without probability adds nothing."""
    return sum(a * math.log(a / m) for a, m in zip(ours, middle, strict=True) if a > 0)
