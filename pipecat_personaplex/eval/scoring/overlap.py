"""Reactions to speech that overlaps the agent's, and to speech that is not for the agent."""

from __future__ import annotations

from collections.abc import Sequence

from pipecat_personaplex.eval.items import Event
from pipecat_personaplex.eval.scoring.spans import Span, merge
from pipecat_personaplex.eval.scoring.takeover import Scores

CALLER_GAP, AGENT_GAP = 0.6, 0.5
"""Gaps in seconds inside the speech of the caller and of the agent that do not split it."""
_ANSWER_SECONDS = 3.0  # speech that starts later is no reaction to the event
_RESUME_SECONDS = 1.0  # an agent that is silent for less has not given way


def score_overlap(spans: Sequence[Span], event: Event) -> Scores:
    """``stop`` and ``response`` in seconds, as Full-Duplex-Bench v1.5 measures them.

    ``stop`` is how long the agent speaks on into the event; missing if it was silent. ``response``
    is from the end of the event to the agent's next start; missing if it says nothing more.
    """
    agent = merge(spans, AGENT_GAP)
    scores: Scores = {}
    overlaps = [
        min(span.end, event.end) - max(span.start, event.start)
        for span in agent
        if min(span.end, event.end) > max(span.start, event.start)
    ]
    if overlaps:
        scores["stop"] = overlaps[0]
    starts = [span.start for span in agent if span.start > event.end]
    if starts:
        scores["response"] = starts[0] - event.end
    return scores


def score_ignored(spans: Sequence[Span], event: Event, until: float) -> Scores:
    """``ignored``: whether the agent behaves as if the event had not happened.

    An agent that speaks when the event starts must speak on until its end, or pause for less than
    a second. An agent that is silent must not start during the event or in the 3 s after it.
    """
    agent = merge(spans, _RESUME_SECONDS)
    speaking = next((span for span in agent if span.start <= event.start < span.end), None)
    if speaking is not None:
        return {"ignored": float(speaking.end >= event.end)}
    latest = min(event.end + _ANSWER_SECONDS, until)
    return {"ignored": float(not any(event.start <= span.start < latest for span in agent))}


def score_silence(spans: Sequence[Span], event: Event) -> Scores:
    """``spoke``: whether the agent speaks in a silence; ``onsets``: how often it starts there."""
    inside = [span for span in spans if span.start < event.end and span.end > event.start]
    starts = [span for span in inside if event.start <= span.start]
    return {"spoke": float(bool(inside)), "onsets": float(len(starts))}
