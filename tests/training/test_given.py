"""Sentences that the agent is given: lines of the script, and words one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.models import random_pool
from training.nano import given, script
from training.nano.facts import STANDARD
from training.nano.given import sample_given, say_words, vocabulary
from training.nano.pool import AgentClip
from training.nano.word_errors import NEW_SENTENCES
from training.nano.wordings import bare

POOL = random_pool()
CHARACTER = script.Character("restaurant", "Owen", "You work here and your name is Owen.", STANDARD)


def sampled(seed: int) -> AgentClip:
    return sample_given(POOL, "NATF2", CHARACTER, np.random.default_rng(seed))


def test_the_vocabulary_has_the_words_of_prices_times_names_and_the_script() -> None:
    words = set(vocabulary())
    assert len(words) > 1500
    assert all(word == bare(word) for word in words)
    for text in ("Nineteen dollars seventy five.", "Marina, Owen", *script.all_lines()):
        assert {bare(word) for word in text.split()} <= words
    new = [bare(word) for text in NEW_SENTENCES for word in text.split()]
    assert sum(word in words for word in new) > 0.95 * len(new)


def test_a_word_has_the_same_codes_in_all_sentences() -> None:
    words = POOL.words["NATM1"]
    first = say_words("Seven minutes walk, minutes.", words, POOL.silence)
    alone = words["minutes"].codes
    assert first.text.split()[1] == "minutes"
    starts = [first.onsets[1], first.onsets[3]]
    length = len(alone) - 1  # the last frame is the decay, which a following word replaces
    for at in starts:
        assert torch.equal(first.codes[at : at + length], alone[:length])
    pause = first.codes[first.onsets[3] - 1]
    assert torch.equal(pause, torch.tensor(POOL.silence, dtype=torch.int16))
    assert torch.equal(first.codes[first.onsets[3] - 2], words["walk"].codes[-1])
    assert len(first.codes) == first.onsets[3] + len(alone) + 1


def test_half_of_the_given_sentences_are_lines() -> None:
    lines = script.all_lines()
    clips = [sampled(seed) for seed in range(400)]
    whole = [clip for clip in clips if clip.text in lines]
    assert 150 < len(whole) < 250
    assert len({clip.text for clip in whole}) > 100, "of other characters, too"
    for clip in clips:
        assert len(clip.onsets) == len(clip.text.split())
        assert clip.onsets[0] == 0 and clip.onsets == sorted(set(clip.onsets))
        assert clip.onsets[-1] < len(clip.codes)


def test_a_line_that_goes_on_keeps_its_codes_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "_LINE_SHARE", 0)
    monkeypatch.setattr(given, "_OTHER_END_SHARE", 1)
    for seed in range(20):
        clip = sampled(seed)
        words = clip.text.split()
        (kept,) = {
            kept
            for line in POOL.agent["NATF2"].values()
            for kept in range(1, min(len(line.onsets), len(words)))
            if line.text.split()[:kept] == words[:kept]
            and line.onsets[kept] == clip.onsets[kept]
            and torch.equal(clip.codes[: clip.onsets[kept] + 1], _joined(line, kept, words[kept]))
        }
        assert kept >= 1


def _joined(line: AgentClip, kept: int, word: str) -> torch.Tensor:
    """The codes of a line's first words, and the first frame of another word."""
    own = POOL.words["NATF2"][bare(word)].codes
    return torch.cat((line.codes[: line.onsets[kept]], own[:1]))
