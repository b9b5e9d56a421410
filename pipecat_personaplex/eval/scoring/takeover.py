"""Takeover and latency: does the agent take the turn, and when.

The takeover rate (TOR) is the share of items in which the agent takes the turn. It should be high
after a turn and after an interruption, and low in a pause. Two rule sets: ``compat`` gives what
the published scripts of Full-Duplex-Bench give, with their quirks; ``fixed`` looks at the event.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipecat_personaplex.eval.items import Event
from pipecat_personaplex.eval.scoring.spans import (
    Span,
    extent,
    utterances,
    words_after,
    words_within,
)
from pipecat_personaplex.words import Word

BACKCHANNEL_SECONDS = 1.0
BACKCHANNEL_WORDS = 3
"""Words that span less than a second, and are at most three, are a backchannel and no turn."""
Scores = dict[str, float]


def takes_turn(words: Sequence[Word]) -> bool:
    """Whether these words are a turn: a second or longer, or more than three words."""
    if not words:
        return False
    spoken = extent(words)
    return spoken.seconds >= BACKCHANNEL_SECONDS or len(words) > BACKCHANNEL_WORDS


def score_pause(words: Sequence[Word], event: Event, compat: bool) -> Scores:
    """``tor`` of a pause.

    ``compat`` counts a turn anywhere in the recording. ``fixed`` counts an utterance that starts
    inside the pause.
    """
    if compat:
        return {"tor": float(takes_turn(words))}
    begun = [each for each in utterances(words) if words_within(each[:1], event.start, event.end)]
    return {"tor": float(any(takes_turn(each) for each in begun))}


def score_turn_end(words: Sequence[Word], event: Event, until: float, compat: bool) -> Scores:
    """``tor`` after a turn, and ``latency`` in seconds if the agent takes the turn.

    ``compat`` takes the first word of the whole recording and counts a negative latency as 0, so
    that an agent that speaks early has the best latency. ``fixed`` takes the first utterance that
    is spoken at the end of the turn or later: ``latency`` is its first word after the event,
    ``offset`` its signed start, and ``early`` whether it starts before the event.

    Args:
        words: Words of the agent.
        event: The end of the turn.
        until: Where the answer must start at the latest: the next event, or the end of the call.
        compat: The rule set.
    """
    if compat:
        return _compat_answer(words, event.end)
    answer = next((each for each in utterances(words) if extent(each).end > event.end), None)
    if answer is None or extent(answer).start >= until:
        return {"tor": 0.0}
    taken = takes_turn(answer)
    scores = {"tor": float(taken)}
    if taken:
        offset = extent(answer).start - event.end
        scores |= {"offset": offset, "early": float(offset < 0)}
        after = words_within(words, event.end, until)
        if after:
            scores["latency"] = after[0].start - event.end
    return scores


def score_interruption(
    words: Sequence[Word],
    tail: Sequence[Word],
    spans: Sequence[Span],
    event: Event,
    until: float,
    compat: bool,
) -> Scores:
    """``tor`` and ``latency`` of the answer to an interruption, and ``stop`` in ``fixed``.

    ``compat`` sees only the words of the cropped audio after the interruption. ``fixed`` also
    gives ``stop``: seconds from the start of the interruption until the agent is silent, if it was
    speaking; and ``stopped``: whether it fell silent before the interruption ended.

    Args:
        words: Words of the agent.
        tail: Words that a transcriber finds in the audio after the interruption alone, at times of
            the whole recording.
        spans: Spans of the agent's speech.
        event: The interruption.
        until: Where the answer must start at the latest.
        compat: The rule set.
    """
    if compat:
        return _compat_answer(tail, event.end)
    scores = score_turn_end(_since_interruption(words, spans, event), event, until, compat=False)
    return scores | stop_scores(spans, event)


def stop_scores(spans: Sequence[Span], event: Event) -> Scores:
    """``stop`` and ``stopped`` of an agent that speaks when the event starts; else nothing."""
    current = next((span for span in spans if span.start <= event.start < span.end), None)
    if current is None:
        return {}
    return {
        "stop": current.end - event.start,
        "stopped": float(current.end <= event.end),
    }


def _since_interruption(words: Sequence[Word], spans: Sequence[Span], event: Event) -> list[Word]:
    """Words of the answer: those after the speech that the caller interrupts has ended."""
    current = next((span for span in spans if span.start <= event.start < span.end), None)
    since = event.start if current is None else min(current.end, event.end)
    return [word for word in words if word.start >= since]


def _compat_answer(words: Sequence[Word], end: float) -> Scores:
    if not takes_turn(words):
        return {"tor": 0.0}
    return {"tor": 1.0, "latency": max(0.0, words[0].start - end)}


def tail_words(words: Sequence[Word], event: Event) -> list[Word]:
    """Words after an interruption, as a transcriber of the cropped audio would find them."""
    return words_after(words, event.end)
