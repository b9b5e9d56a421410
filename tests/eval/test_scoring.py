"""Scores of hand-computed cases, with both rule sets, and the laws that they obey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pipecat_personaplex.eval.items import EVENT_KINDS, Event
from pipecat_personaplex.eval.scoring.aggregate import ItemValues, bootstrap_interval, summarize
from pipecat_personaplex.eval.scoring.backchannels import divergence, score_narration
from pipecat_personaplex.eval.scoring.item_score import RULES, Heard, Rules, score_item
from pipecat_personaplex.eval.scoring.overlap import score_ignored, score_overlap, score_silence
from pipecat_personaplex.eval.scoring.spans import Span, merge, utterances
from pipecat_personaplex.eval.scoring.takeover import (
    score_interruption,
    score_pause,
    score_turn_end,
    tail_words,
    takes_turn,
)
from pipecat_personaplex.words import Word

FEW = settings(max_examples=25, deadline=None)


def words(*times: tuple[float, float]) -> list[Word]:
    return [Word(f"w{index}", start, end) for index, (start, end) in enumerate(times)]


def evenly(count: int, start: float, end: float) -> list[Word]:
    edges = np.linspace(start, end, count + 1)
    return words(*zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


@pytest.mark.parametrize(
    ("count", "seconds", "taken"),
    [(0, 0, False), (1, 0.3, False), (3, 0.9, False), (4, 0.9, True), (2, 1.0, True), (3, 5, True)],
)
def test_a_turn_is_a_second_or_more_than_three_words(
    count: int, seconds: float, taken: bool
) -> None:
    spoken = evenly(count, 2.0, 2.0 + seconds) if count else []
    assert takes_turn(spoken) is taken


def test_pause_counts_the_whole_file_or_only_the_pause() -> None:
    answer = evenly(5, 4.0, 5.5)  # after the caller has finished
    pause = Event("pause", 1.0, 2.0)
    assert score_pause(answer, pause, compat=True) == {"tor": 1.0}
    assert score_pause(answer, pause, compat=False) == {"tor": 0.0}
    interrupting = evenly(5, 1.2, 3.0)
    assert score_pause(interrupting, pause, compat=False) == {"tor": 1.0}
    assert score_pause(evenly(2, 1.2, 1.7), pause, compat=False) == {"tor": 0.0}  # a backchannel


def test_an_early_talker_has_no_latency_in_compat_and_a_negative_offset_in_fixed() -> None:
    spoken = words((1.0, 1.4), (1.5, 2.2), (2.3, 2.9))
    event = Event("turn_end", 2.0, 2.0)
    assert score_turn_end(spoken, event, 9.0, compat=True) == {"tor": 1.0, "latency": 0.0}
    fixed = score_turn_end(spoken, event, 9.0, compat=False)
    assert fixed == pytest.approx({"tor": 1, "offset": -1.0, "early": 1, "latency": 0.3})


def test_compat_takes_the_first_word_of_the_file_and_fixed_the_answer() -> None:
    spoken = words((0.2, 0.4), (3.0, 3.5), (3.5, 4.2))  # a backchannel, then the answer
    event = Event("turn_end", 2.5, 2.5)
    assert score_turn_end(spoken, event, 9.0, compat=True) == {"tor": 1.0, "latency": 0.0}
    fixed = score_turn_end(spoken, event, 9.0, compat=False)
    assert fixed == pytest.approx({"tor": 1, "offset": 0.5, "early": 0, "latency": 0.5})


def test_latency_exists_only_with_a_turn() -> None:
    short = words((3.0, 3.2))
    event = Event("turn_end", 2.0, 2.0)
    for compat in (True, False):
        assert score_turn_end(short, event, 9.0, compat) == {"tor": 0.0}
        assert score_turn_end([], event, 9.0, compat) == {"tor": 0.0}
    late = evenly(4, 6.0, 8.0)  # belongs to the next event
    assert score_turn_end(late, event, 5.0, compat=False) == {"tor": 0.0}


def test_interruption_is_scored_on_the_tail() -> None:
    event = Event("interruption", 3.0, 4.0)
    before, answer = evenly(5, 1.5, 3.4), evenly(4, 4.8, 6.0)
    spans = [Span(1.5, 3.4), Span(4.8, 6.0)]
    spoken = [*before, *answer]
    compat = score_interruption(spoken, tail_words(spoken, event), spans, event, 9.0, compat=True)
    assert compat == pytest.approx({"tor": 1, "latency": 0.8})
    fixed = score_interruption(spoken, [], spans, event, 9.0, compat=False)
    assert fixed == pytest.approx(
        {"tor": 1, "offset": 0.8, "early": 0, "latency": 0.8, "stop": 0.4, "stopped": 1}
    )
    assert score_interruption(before, [], spans[:1], event, 9.0, compat=True) == {"tor": 0.0}


def test_an_agent_that_talks_on_does_not_stop() -> None:
    event = Event("interruption", 3.0, 4.0)
    spoken = evenly(30, 0.0, 9.0)
    scores = score_interruption(spoken, [], [Span(0.0, 9.0)], event, 9.0, compat=False)
    assert scores["stop"] == 6.0 and scores["stopped"] == 0.0
    # The cropped audio starts in the middle of speech.
    tail = tail_words(spoken, event)
    assert tail[0].start == 4.0
    assert score_interruption(spoken, tail, [], event, 9.0, compat=True)["latency"] == 0.0


class TestNarration:
    def test_silence(self) -> None:
        for compat in (True, False):
            assert score_narration([], [], 20.0, [1.0], compat) == {
                "tor": 0.0,
                "frequency": 0.0,
                "jsd": 1.0,
            }

    def test_short_spans_are_backchannels(self) -> None:
        spans = [Span(4, 4.4), Span(8, 8.4)]
        spoken = words((4, 4.4), (8, 8.4))
        for compat in (True, False):
            scores = score_narration(spoken, spans, 20.0, None, compat)
            assert scores == {"tor": 0.0, "frequency": 0.1}

    def test_a_long_span_is_a_takeover_and_ends_the_count(self) -> None:
        spans = [Span(1, 1.4), Span(5, 8.5), Span(9, 9.3)]
        for compat in (True, False):
            scores = score_narration([], spans, 10.0, None, compat)
            assert scores == {"tor": 1.0, "frequency": 0.1}

    def test_the_last_span_decides_in_compat(self) -> None:
        spans = [Span(1, 2.5), Span(5, 5.3)]
        spoken = [*evenly(4, 1, 2.5), *words((5, 5.3))]
        assert score_narration(spoken, spans, 10.0, None, True) == {"tor": 0.0, "frequency": 0.2}
        assert score_narration(spoken, spans, 10.0, None, False) == {"tor": 1.0, "frequency": 0.1}

    @pytest.mark.parametrize(
        ("seconds", "count", "taken"),
        [(0.9, 2, 0.0), (0.9, 3, 1.0), (0.9, 4, 1.0), (1.0, 1, 1.0), (2.9, 0, 1.0)],
    )
    def test_words_and_length(self, seconds: float, count: int, taken: float) -> None:
        spoken = evenly(count, 2.0, 2.0 + seconds) if count else []
        for compat in (True, False):
            scores = score_narration(spoken, [Span(2, 2 + seconds)], 10.0, None, compat)
            assert scores["tor"] == taken

    def test_distance_is_that_of_scipy(self) -> None:
        counts = np.full(11, 1e-10)
        counts[5:8] += 1  # 1.0 to 1.5 s in bins of 0.2 s
        human = np.arange(11, dtype=float)
        expected = jensenshannon(counts, human)
        assert divergence([Span(1.0, 1.5)], 2.0, human.tolist()) == pytest.approx(expected)

    def test_equal_distributions_have_no_distance(self) -> None:
        assert divergence([Span(0.0, 0.3)], 0.3, [0.5, 0.5]) == pytest.approx(0.0, abs=1e-6)
        far = divergence([Span(0.0, 0.1)], 2.0, [0.0] * 9 + [1.0])
        assert far == pytest.approx(math.sqrt(math.log(2)), abs=1e-4)


def test_overlap_is_that_of_the_merged_spans() -> None:
    event = Event("backchannel", 3.0, 4.0)
    assert score_overlap([Span(1.5, 3.4), Span(5.0, 6.0)], event) == pytest.approx(
        {"stop": 0.4, "response": 1.0}
    )
    # A gap of at most 0.5 s does not split the agent's speech.
    assert score_overlap([Span(2.0, 3.2), Span(3.6, 9.0)], event) == {"stop": 1.0}
    assert score_overlap([], event) == {}


def test_ignored() -> None:
    event = Event("aside", 3.0, 4.0)
    assert score_ignored([Span(2.0, 5.0)], event, 9.0) == {"ignored": 1.0}
    assert score_ignored([Span(2.0, 3.3), Span(3.9, 5.0)], event, 9.0) == {"ignored": 1.0}
    assert score_ignored([Span(2.0, 3.3), Span(5.0, 6.0)], event, 9.0) == {"ignored": 0.0}
    assert score_ignored([], event, 9.0) == {"ignored": 1.0}
    assert score_ignored([Span(5.0, 6.0)], event, 9.0) == {"ignored": 0.0}
    assert score_ignored([Span(7.5, 8.0)], event, 9.0) == {"ignored": 1.0}  # 3.5 s later
    assert score_ignored([Span(5.0, 6.0)], event, 4.5) == {"ignored": 1.0}  # the next turn's answer


def test_silence() -> None:
    event = Event("silence", 1.0, 5.0)
    assert score_silence([], event) == {"spoke": 0.0, "onsets": 0.0}
    spans = [Span(0.5, 1.5), Span(2.0, 2.5), Span(5.5, 6.0)]
    assert score_silence(spans, event) == {"spoke": 1.0, "onsets": 1.0}


def test_compat_reads_the_first_annotation_of_a_kind() -> None:
    events = [Event("pause", 1.0, 1.5), Event("pause", 3.0, 3.5)]
    heard = Heard(evenly(6, 3.1, 5.0), [], [], 6.0, {})
    assert score_item(events, heard, "compat") == [("pause.tor", 1.0)]
    assert score_item(events, heard, "fixed") == [("pause.tor", 0.0), ("pause.tor", 1.0)]


def test_an_answer_to_a_finished_narration_is_no_takeover() -> None:
    events = [Event("narration", 1.0, 6.0)]
    spans = [Span(3.0, 3.4), Span(6.5, 9.0)]
    spoken = [*words((3.0, 3.4)), *evenly(8, 6.5, 9.0)]
    found = score_item(events, Heard(spoken, spans, [], 10.0, {}), "fixed")
    assert found == [("narration.tor", 0.0), ("narration.frequency", 0.2)]
    begun = Heard(spoken, [Span(0.5, 3.4)], [], 10.0, {})  # the agent talks on into it
    assert dict(score_item(events, begun, "fixed"))["narration.tor"] == 1.0


def test_a_transcript_of_the_tail_is_used_if_there_is_one() -> None:
    events = [Event("interruption", 1.0, 2.0)]
    heard = Heard(evenly(6, 2.5, 5.0), [], [], 6.0, {0: evenly(6, 3.0, 5.0)})
    assert dict(score_item(events, heard, "compat"))["interruption.latency"] == 1.0
    silent = Heard(evenly(6, 2.5, 5.0), [], [], 6.0, {0: []})
    assert dict(score_item(events, silent, "compat"))["interruption.tor"] == 0.0


TIMES = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 60)), min_size=0, max_size=8).map(
    lambda pairs: sorted((start / 100, (start + length) / 100) for start, length in pairs)
)
KINDS = st.sampled_from(EVENT_KINDS)


def shifted(times: Sequence[tuple[float, float]], by: float) -> list[tuple[float, float]]:
    return [(start + by, end + by) for start, end in times]


def heard(times: Sequence[tuple[float, float]], seconds: float) -> Heard:
    spans = merge((Span(*each) for each in times), 0.2)
    return Heard(words(*times), spans, [Span(a * 1.5, b * 1.5) for a, b in spans], seconds, {})


@FEW
@given(times=TIMES, kind=KINDS, start=st.integers(0, 80), rules=st.sampled_from(RULES))
def test_shifting_time_changes_no_score(
    times: list[tuple[float, float]], kind: str, start: int, rules: Rules
) -> None:
    """Offsets are relative: a call that happens 4 s later has the same scores."""
    event = Event(kind, start / 10, start / 10 + 0.5)  # type: ignore[arg-type]
    later = Event(kind, event.start + 4, event.end + 4)  # type: ignore[arg-type]
    if kind == "narration" and rules == "compat":
        return  # its times are scaled, so they shift by another amount
    before = score_item([event], heard(times, 12.0), rules)
    after = score_item([later], heard(shifted(times, 4.0), 16.0), rules)
    assert [name for name, _ in before] == [name for name, _ in after]
    assert [value for _, value in after] == pytest.approx([value for _, value in before])


@FEW
@given(kind=KINDS, start=st.integers(0, 80), rules=st.sampled_from(RULES))
def test_silence_scores_zero(kind: str, start: int, rules: Rules) -> None:
    event = Event(kind, start / 10, start / 10 + 0.5)  # type: ignore[arg-type]
    scores = dict(score_item([event], heard([], 12.0), rules))
    assert all(value == 0 for name, value in scores.items() if not name.endswith("ignored"))
    assert not any(name.endswith(("latency", "stop", "response")) for name in scores)


@FEW
@given(times=TIMES, kind=KINDS, start=st.integers(0, 80))
def test_shares_are_shares_and_fixed_latency_follows_the_event(
    times: list[tuple[float, float]], kind: str, start: int
) -> None:
    event = Event(kind, start / 10, start / 10 + 0.5)  # type: ignore[arg-type]
    for rules in RULES:
        for name, value in score_item([event], heard(times, 12.0), rules):
            metric = name.partition(".")[2]
            if metric in ("tor", "early", "stopped", "ignored", "spoke"):
                assert value in (0.0, 1.0)
            if metric in ("latency", "stop", "response", "frequency", "onsets"):
                assert value >= 0


@FEW
@given(times=TIMES, delay=st.integers(1, 200))
def test_a_later_answer_has_the_later_latency(times: list[tuple[float, float]], delay: int) -> None:
    event = Event("turn_end", 0.0, 0.0)
    first = score_turn_end(words(*times), event, 60.0, compat=True)
    later = score_turn_end(words(*shifted(times, delay / 100)), event, 60.0, compat=True)
    assert first["tor"] == later["tor"]
    if "latency" in first:
        assert later["latency"] - first["latency"] == pytest.approx(delay / 100)


@FEW
@given(times=TIMES, gap=st.integers(0, 100))
def test_merged_spans_cover_the_same_time_and_lie_apart(
    times: list[tuple[float, float]], gap: int
) -> None:
    merged = merge((Span(*each) for each in times), gap / 100)
    assert all(any(m.start <= a and b <= m.end for m in merged) for a, b in times)
    assert all(b.start - a.end > gap / 100 for a, b in pairwise(merged))


def test_utterances_split_at_long_gaps() -> None:
    spoken = words((0, 0.5), (1.4, 2.0), (3.1, 3.4))
    assert [[w.word for w in each] for each in utterances(spoken)] == [["w0", "w1"], ["w2"]]


def values(item: str, seed: int, *numbers: float) -> ItemValues:
    return ItemValues(item, "g", seed, [("turn_end.tor", number) for number in numbers])


def test_fixed_means_are_over_items_and_compat_means_over_values() -> None:
    calls = [values("a", 0, 1, 1, 1), values("b", 0, 0)]
    assert summarize(calls)["g/turn_end.tor"].mean == 0.5
    assert summarize(calls, compat=True)["g/turn_end.tor"].mean == 0.75


def test_seeds_and_their_spread() -> None:
    calls = [values("a", 0, 1), values("b", 0, 1), values("a", 1, 0), values("b", 1, 1)]
    summary = summarize(calls)["g/turn_end.tor"]
    assert (summary.mean, summary.items) == (0.75, 2)
    assert summary.seeds == {0: 1.0, 1: 0.5}
    assert summary.spread == pytest.approx(math.sqrt(0.125))
    assert summarize(reversed(calls)) == summarize(calls)


def test_the_interval_contains_the_mean_and_shrinks_with_items() -> None:
    random = np.random.default_rng(1)
    few, many = random.random(20).tolist(), random.random(500).tolist()
    for numbers in (few, many):
        low, high = bootstrap_interval(numbers)
        assert low < float(np.mean(numbers)) < high
        # The normal approximation of the same interval.
        half = 1.96 * float(np.std(numbers)) / math.sqrt(len(numbers))
        assert high - low == pytest.approx(2 * half, rel=0.15)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval(few) == bootstrap_interval(few)
