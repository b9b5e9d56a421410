"""The self-test passes, and a broken scorer does not pass it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.eval import scripted_agents, selftest, voice_activity
from pipecat_personaplex.eval.scoring import backchannels, item_score, takeover
from pipecat_personaplex.eval.scoring.spans import Span
from pipecat_personaplex.eval.selftest import check_nano, check_scripted, record_voice
from pipecat_personaplex.words import Word


@pytest.fixture(scope="module")
def voice(nano: Engine) -> Pcm:
    return record_voice(nano)


def failures(voice: Pcm) -> list[str]:
    return [str(check) for check in check_scripted(voice) if not check.passed]


def test_scripted_agents_have_their_exact_scores(voice: Pcm) -> None:
    checks = list(check_scripted(voice))
    assert len(checks) > 120
    assert {check.agent for check in checks} == set(scripted_agents.SCRIPTS)
    assert not failures(voice)


def test_nano_is_within_its_ranges(nano: Engine) -> None:
    checks = list(check_nano(nano, per_kind=1))
    assert len(checks) == len(selftest.NANO_RANGES)
    assert not [str(check) for check in checks if not check.passed]


def shifted_spans(pcm: Pcm, rate: int) -> list[Span]:
    spans = voice_activity.energy_spans(pcm, rate)
    return [Span(span.start + 0.02, span.end + 0.02) for span in spans]


def last_word(words: Any, end: float) -> dict[str, float]:
    if not takeover.takes_turn(words):
        return {"tor": 0.0}
    return {"tor": 1.0, "latency": max(0.0, words[-1].start - end)}


def unclamped(words: Any, end: float) -> dict[str, float]:
    if not takeover.takes_turn(words):
        return {"tor": 0.0}
    return {"tor": 1.0, "latency": words[0].start - end}


Mutation = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, Mutation] = {
    "any word is a turn": lambda patch: patch.setattr(takeover, "takes_turn", bool),
    "nothing is a turn": lambda patch: patch.setattr(takeover, "takes_turn", lambda words: False),
    "a turn needs ten words": lambda patch: patch.setattr(takeover, "takes_turn", ten_words),
    "the last word counts": lambda patch: patch.setattr(takeover, "_compat_answer", last_word),
    "negative latency": lambda patch: patch.setattr(takeover, "_compat_answer", unclamped),
    "late by one hop": lambda patch: patch.setattr(selftest, "energy_spans", shifted_spans),
    "no quirk": lambda patch: patch.setattr(selftest, "_QUIRK_RATE", 1_000),
    "backchannels of 0.3 s at most": lambda patch: patch.setattr(
        backchannels, "_SHORT_SECONDS", 0.3
    ),
    "a long span is no turn": lambda patch: patch.setattr(backchannels, "_TURN_SECONDS", 60.0),
    "overlaps are never seen": lambda patch: patch.setattr(
        item_score, "score_overlap", lambda spans, event: {}
    ),
    "every event is silence": lambda patch: patch.setattr(item_score, "_UNWANTED", ()),
    "stops are never seen": lambda patch: patch.setattr(
        takeover, "stop_scores", lambda spans, event: {}
    ),
    "the rule sets are swapped": lambda patch: patch.setattr(
        item_score, "score_pause", lambda words, event, compat: swapped_pause(words, event, compat)
    ),
    "utterances never end": lambda patch: patch.setattr(
        takeover, "utterances", lambda words: [list(words)] if words else []
    ),
}


def ten_words(words: list[Word]) -> bool:
    return len(words) >= 10


def swapped_pause(words: Any, event: Any, compat: bool) -> dict[str, float]:
    return takeover.score_pause(words, event, not compat)


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_a_broken_scorer_is_caught(name: str, voice: Pcm, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    assert failures(voice), f"not caught: {name}"


def test_solid_speech_has_no_gap(voice: Pcm) -> None:
    seconds = round(len(voice) / 24_000 * 50) / 50
    assert voice_activity.energy_spans(voice) == [Span(0.0, seconds)]
    with pytest.raises(ValueError, match="silent"):
        scripted_agents.solid_speech(np.zeros(24_000, np.float32))
