"""Synthesised speech, its onsets, and calls; needs libespeak-ng (Debian: libespeak-ng1)."""

from __future__ import annotations

import ctypes.util

import numpy as np
import pytest
import torch

from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from training.nano import script
from training.nano.answers import is_of_another_role, nearest_line
from training.nano.calls import interrupting_calls, question_calls
from training.nano.codec_data import Phonemes, add_at
from training.nano.espeak import Manner, Utterance, _word_onsets, speaker
from training.nano.evaluate import audible, evaluate, onsets
from training.nano.noise import HELD_OUT_NOISES, TRAINING_NOISES, rms
from training.nano.turns import speak_turn
from training.nano.voices import held_out_voices, sample_user_voice

needs_espeak = pytest.mark.skipif(
    ctypes.util.find_library("espeak-ng") is None, reason="libespeak-ng is not installed"
)


def test_onsets_of_merged_words_are_interpolated() -> None:
    # espeak marks "I" (4) and "your" (9) of "Hi, I am your", but not "am".
    words = _word_onsets("Hi, I am your", {0: 0.0, 4: 0.5, 9: 0.8}, 1.2)
    assert [word for word, _ in words] == ["Hi,", "I", "am", "your"]
    assert [round(onset, 2) for _, onset in words] == [0.0, 0.5, 0.62, 0.8]


def test_phoneme_targets_of_frames() -> None:
    utterance = Utterance(
        "x", np.zeros(FRAME_SAMPLES * 3, np.float32), (), (("a", 0.0), ("b", 0.1))
    )
    target = Phonemes(["a", "b"]).targets(utterance, lead=0.08, frames=5)
    # Columns: silence, a, b. One frame of lead; "a" reaches 20 ms into the third frame.
    assert target[0].tolist() == [1, 0, 0]
    assert target[1].tolist() == [0, 1, 0]
    assert target[3].tolist() == [0, 0, 1]
    assert torch.equal(target[:, 0], (target[:, 1:].sum(dim=1) == 0).float())


def test_add_at_clips_at_both_ends() -> None:
    track = np.zeros(4, np.float32)
    add_at(np.array([1, 2, 3], np.float32), track, -1)
    add_at(np.array([5, 6], np.float32), track, 3)
    assert track.tolist() == [2, 3, 0, 5]


@pytest.mark.parametrize("noise", [*TRAINING_NOISES, *HELD_OUT_NOISES])
def test_noises_have_an_rms_of_one(noise: object) -> None:
    assert callable(noise)
    pcm = noise(np.random.default_rng(0), SAMPLE_RATE)
    assert pcm.dtype == np.float32
    assert rms(pcm) == pytest.approx(1, rel=1e-3)


def test_onsets_ignore_clicks() -> None:
    pcm = np.zeros(4 * SAMPLE_RATE, np.float32)
    pcm[SAMPLE_RATE : SAMPLE_RATE + 300] = 0.5  # a click
    pcm[2 * SAMPLE_RATE : 3 * SAMPLE_RATE] = 0.1
    pcm[int(2.4 * SAMPLE_RATE) : int(2.6 * SAMPLE_RATE)] = 0  # between two words
    assert onsets(pcm) == [2.0]
    assert audible(pcm).sum() == 40


def test_the_nearest_line_ignores_the_name_and_no_fact() -> None:
    assert nearest_line("The clasic is nine dollars fifty") == "The classic is nine dollars fifty."
    assert nearest_line("The classic is nine dollars") == "The classic is nine dollars."
    assert nearest_line("") is None
    assert nearest_line("zzz qqq") is None
    assert nearest_line("My name is Nina.") == nearest_line("My name is Owen.") == "My name is *."
    assert nearest_line("We are on Market Street.") == "We are on Market Street."


def test_lines_of_another_role() -> None:
    assert is_of_another_role("teacher", "We have classic and spicy shakshuka.")
    assert not is_of_another_role("restaurant", "We have classic and spicy shakshuka.")
    assert not is_of_another_role("teacher", script.BACKCHANNEL)
    assert not is_of_another_role("teacher", "zzz qqq")


def test_held_out_voices_are_no_training_voices() -> None:
    random = np.random.default_rng(0)
    known = {sample_user_voice(random).voice for _ in range(300)}
    held = {manner.voice for manner in held_out_voices()}
    assert len(known) >= 12
    assert not {voice.partition("+")[2] for voice in known} & {
        voice.partition("+")[2] for voice in held
    }


@needs_espeak
def test_word_onsets_match_the_audio() -> None:
    utterance = speaker().say("One classic shakshuka, coming up.", Manner("en-us"))
    assert 1 < utterance.seconds < 4
    onsets_ = [onset for _, onset in utterance.words]
    assert onsets_ == sorted(onsets_)
    assert onsets_[0] < 0.1
    start = int(onsets_[3] * SAMPLE_RATE)  # after the comma's pause
    assert rms(utterance.pcm[start : start + 4800]) > 3 * rms(
        utterance.pcm[start - 1200 : start - 240]
    )


@needs_espeak
def test_a_pause_is_silent_at_its_stated_times() -> None:
    turn = speak_turn("How much is the spicy?", Manner("en-us"), np.random.default_rng(1), True)
    assert turn.pause is not None
    first, last = (int(second * SAMPLE_RATE) for second in turn.pause)
    assert 0.3 <= turn.pause[1] - turn.pause[0] <= 0.91
    assert not turn.pcm[first + 1 : last - 1].any()
    assert rms(turn.pcm[last : last + 4800]) > 0.01
    assert [word for word, _ in turn.words][-1] == "spicy?"


@needs_espeak
def test_calls_contain_their_stated_turns() -> None:
    for call in (*question_calls(2, 0), *interrupting_calls(1, 0)):
        assert call.character.name is None or call.character.name in call.character.prompt
        for turn in call.turns:
            assert turn.intent in script.intents(call.character.role)
            middle = int((turn.start + turn.end) / 2 * SAMPLE_RATE)
            assert rms(call.pcm[middle - 4800 : middle + 4800]) > 0.005


@needs_espeak
def test_evaluation_of_the_bundled_checkpoints_speed() -> None:
    metrics = evaluate(resolve_folder("nano", progress=False), calls=1, silence=False, seeds=())
    assert metrics.keys() == {"speed"}
    assert metrics["speed"]["real_time_factor"] > 0
