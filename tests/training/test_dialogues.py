"""Composed dialogues follow the rules of the recipe and match the engine's prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipecat_personaplex.checkpoint.voices import Voice
from pipecat_personaplex.constants import AGENT_CODES, TEXT, TEXT_EPAD, TEXT_PAD, USER_CODES
from pipecat_personaplex.engine.prompt import build_prompt, text_prompt_tokens
from tests.training.models import CONFIG, Letters, random_pool
from training.nano import dialogues, script, wordings
from training.nano.clips import share_beginnings
from training.nano.corruption import corrupt_inputs
from training.nano.dialogues import (
    ANSWER_FRAMES,
    LATE_FRAMES,
    YIELD_FRAMES,
    DialogueWriter,
    _wait,
)
from training.nano.facts import FACTS, STANDARD
from training.nano.given import say_words
from training.nano.names import NAMES
from training.nano.pool import AgentClip, UserClip
from training.nano.tracks import Track, change_pace, copied_frames, word_tokens

POOL = random_pool()
WRITER = DialogueWriter(POOL, Letters(), CONFIG)
CHARACTER = script.Character("restaurant", "Owen", "You work here and your name is Owen.", STANDARD)


def talk(seed: int, length: int = 600) -> Track:
    return WRITER.talk(length, "NATF2", CHARACTER, np.random.default_rng(seed))


def speaking(track: Track) -> torch.Tensor:
    """Frames in which the caller speaks; the pool's background codes are all 3."""
    return (track.frames[:, USER_CODES] != 3).all(dim=1)


def test_the_prompt_equals_the_engines() -> None:
    frames = WRITER.prompt("NATM1", "Be kind.", np.random.default_rng(0))
    voice = Voice("NATM1", codes=POOL.voices["NATM1"][0].long())
    expected = build_prompt(voice, text_prompt_tokens("Be kind.", Letters()), CONFIG)
    assert frames.shape[0] == expected.frames
    example = WRITER.example(500, np.random.default_rng(3))
    assert example.columns.shape == (500, 17)
    start = torch.equal(example.columns[0], expected.columns[0])
    assert start == bool(example.positions[0] == 0)


def test_words_start_a_frame_before_their_onsets() -> None:
    clip = AgentClip("no way out", torch.zeros(14, 8), [0, 6, 7], copied=[1])
    tokens, copied = word_tokens(clip, Letters())
    no, way, out = (Letters().encode(word) for word in ("no", "way", "out"))
    assert tokens[:2] == no
    assert tokens[2:4] == [TEXT_PAD] * 2
    assert tokens[4] == TEXT_EPAD
    # The last word starts after the pieces of the previous word.
    assert tokens[5:8] == way
    assert tokens[8:11] == out
    assert tokens[11:] == [TEXT_PAD] * 3
    assert [index for index, flag in enumerate(copied) if flag] == [5, 6, 7]


@pytest.mark.parametrize("seed", range(8))
def test_agent_speaks_only_in_answers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogues, "_BARGE_IN_SHARE", 0)
    monkeypatch.setattr(dialogues, "_OTHER_PACE_SHARE", 0)
    monkeypatch.setattr(dialogues, "_GIVEN_SHARE", 0)
    track = talk(seed)
    silent = (track.frames[:, AGENT_CODES] == 0).all(dim=1)
    assert torch.equal(silent, ~track.audible)
    text = track.frames[:, TEXT]
    tokens = text[~track.audible]
    assert set(tokens.tolist()) <= {TEXT_PAD, TEXT_EPAD}

    starts = (track.audible & ~torch.roll(track.audible, 1)).nonzero()[:, 0].tolist()
    assert starts, "a dialogue has answers"
    user = [False, *speaking(track).tolist(), False]
    for start in starts:
        assert text[start - 1] == TEXT_EPAD
        # Turns of the pool have 10 frames after their words.
        turn = max(at for at in range(start + 1) if user[at + 1])
        turn_end = next(at for at in range(turn, len(user)) if not user[at + 1])
        words_end = turn_end - 10
        assert speaking(track)[words_end - 15 : words_end].all()
        assert start - words_end in (*ANSWER_FRAMES, *range(LATE_FRAMES[0], LATE_FRAMES[1] + 1))


def test_few_answers_are_late() -> None:
    random = np.random.default_rng(0)
    waits = [_wait(random) for _ in range(500)]
    late = [wait for wait in waits if wait not in ANSWER_FRAMES]
    assert 30 < len(late) < 90
    assert min(late) == LATE_FRAMES[0] and max(late) == LATE_FRAMES[1]


def test_an_interrupted_agent_falls_silent() -> None:
    cut = 0
    for seed in range(20):
        track = talk(seed)
        user = speaking(track)
        begins = (user & ~torch.roll(user, 1)).nonzero()[:, 0].tolist()
        for begin in begins:
            if 3 < begin < len(user) - 12 and track.audible[begin]:
                cut += 1
                quiet_from = begin + 3 + YIELD_FRAMES
                assert not track.audible[quiet_from : quiet_from + 4].any()
    assert cut > 3


def test_a_story_gets_a_backchannel_and_its_question_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialogues, "_GIVEN_SHARE", 0)
    pool = random_pool()
    for caller in pool.callers:
        for clips in caller.clips.values():
            clips[:] = [dataclasses.replace(clip, story_end=clip.start + 2) for clip in clips]
    writer = DialogueWriter(pool, Letters(), CONFIG)
    track = writer.talk(400, "NATF2", CHARACTER, np.random.default_rng(1))
    starts = (track.audible & ~torch.roll(track.audible, 1)).nonzero()[:, 0].tolist()
    listening = pool.agent["NATF2"][script.BACKCHANNEL].codes.long()
    is_backchannel = [
        torch.equal(track.frames[at : at + 4, AGENT_CODES], listening[:4]) for at in starts
    ]
    assert is_backchannel[:2] == [True, False], "first the backchannel, then the answer"


def test_padding_has_more_weight_while_the_agent_decides_whether_to_answer() -> None:
    example = WRITER.example(500, np.random.default_rng(3))
    text, weights = example.targets[:, TEXT], example.text_weights
    onset = int(((text == TEXT_EPAD) & (weights > 0)).nonzero()[0, 0])
    assert weights[onset] == 1
    waiting = weights[onset - 6 : onset]
    assert (waiting > 0.3).all(), "the caller's words and the wait after them"
    assert (waiting < 1).all(), "an onset has more weight"
    alone = weights[weights > 0][0]
    assert alone >= waiting.max(), "silence without a question has at least the same weight"


def test_targets_are_the_next_columns() -> None:
    example = WRITER.example(500, np.random.default_rng(3))
    assert torch.equal(example.targets[:-1], example.columns[1:, :9])
    assert example.text_weights[:20].sum() == 0, "prompts have no loss"
    assert (example.audio_weights == 1).any()


def test_corrupt_inputs_changes_neither_prompts_nor_targets() -> None:
    example = WRITER.example(500, np.random.default_rng(3))
    columns, targets = example.columns.clone(), example.targets.clone()
    corrupt_inputs(example, CONFIG, np.random.default_rng(0))
    assert torch.equal(example.targets, targets)
    given = int(example.text_weights.nonzero()[0, 0])
    assert given > 20, "this example has a prompt"
    assert torch.equal(example.columns[:given, TEXT], columns[:given, TEXT])
    assert not torch.equal(example.columns[:, AGENT_CODES], columns[:, AGENT_CODES])
    assert (example.columns[:, 10:] == -1).any(), "callers' acoustic codes are dropped"
    assert (example.columns[:, :10] >= 0).all()


@pytest.mark.parametrize("pace", [0.85, 1.0, 1.15])
def test_word_ends_move_with_the_pace(pace: float) -> None:
    frames = torch.arange(40)[:, None].expand(40, 8)
    clip = UserClip("menu", frames, 6, 30, [(12, 1), (20, 2), (30, 3)], story_end=20)
    other = change_pace(clip, pace)
    order = other.codes[:, 0].tolist()
    assert other.end - other.start == round(24 / pace)
    assert order[: other.start] == list(range(6)) and order[other.end :] == list(range(30, 40))
    assert order == sorted(order), "the order of frames does not change"
    for (moved, word), (frame, same) in zip(other.word_ends, clip.word_ends, strict=True):
        assert word == same
        assert order[moved - 1] < frame <= order[moved]
    assert other.story_end == other.word_ends[1][0]


def test_training_never_uses_held_out_wordings() -> None:
    for intent in wordings.INTENTS:
        known, held = (set(wordings.wordings(intent, held_out)) for held_out in (False, True))
        assert len(held) == 2
        assert len(known) >= 6
        assert not known & held
        sampled = {
            wordings.sample_wording(intent, np.random.default_rng(seed)) for seed in range(80)
        }
        assert not held & sampled
        assert len(sampled) > 40
        words = {wordings.bare(word) for text in sampled for word in text.split()}
        assert words <= wordings.caller_word_numbers().keys()


def test_questions_for_the_other_role_are_refused() -> None:
    assert CHARACTER.answer("hello") == "Hello, this is Owen. What can I get you?"
    assert CHARACTER.answer("moon") == script.ROLES["restaurant"].answers[script.REFUSAL]
    unnamed = script.Character("teacher", None, "You are a teacher.")
    assert "{" not in unnamed.answer("name")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> AgentClip:
    """The only sentence that is given."""
    clip = say_words("Seven minutes, seven.", POOL.words["NATF2"], POOL.silence)
    monkeypatch.setattr(dialogues, "sample_given", lambda *_: clip)
    return clip


def begins(track: Track, clip: AgentClip) -> list[int]:
    """The frames in which a sentence starts, of those that fit."""
    said = clip.codes.long()
    last = len(track.frames) - len(said)
    return [
        at
        for at in range(1, last)
        if torch.equal(track.frames[at : at + len(said), AGENT_CODES], said)
    ]


def test_given_sentences_teach_pace_and_sound_but_not_when_to_speak(given: AgentClip) -> None:
    found = 0
    for seed in range(12):
        track = talk(seed)
        for at in begins(track, given):
            found += 1
            words = track.frames[at : at + len(given.codes), TEXT]
            weights = track.word_weights[at : at + len(given.codes)]
            assert track.frames[at - 1, TEXT] == TEXT_EPAD and track.word_weights[at - 1] == 0
            spoken = (words != TEXT_EPAD) & (words != TEXT_PAD)
            assert spoken.sum() > 4 and (weights[spoken] == dialogues._GIVEN_WEIGHT).all()
            assert (weights[~spoken] == 1).all()
            assert track.new[at : at + len(given.codes)].all()
    assert found > 3


def test_no_given_sentence_starts_in_an_interrupted_answer(
    monkeypatch: pytest.MonkeyPatch, given: AgentClip
) -> None:
    monkeypatch.setattr(dialogues, "_BARGE_IN_SHARE", 1)
    monkeypatch.setattr(dialogues, "_GIVEN_SHARE", 0.5)
    found = 0
    for seed in range(12):
        track = talk(seed)
        for at in begins(track, given):
            found += 1
            assert not track.audible[at - 1]
    assert found > 3


def test_in_a_speaking_example_the_agent_says_given_sentences_to_a_silent_caller() -> None:
    track = WRITER.speak(600, "NATF2", CHARACTER, np.random.default_rng(0))
    assert not speaking(track).any() and (track.word_ends == -1).all()
    assert bool((track.new == track.audible).all())
    assert 0.6 < track.audible.float().mean() < 0.95
    example = WRITER.example(600, np.random.default_rng(3), speaking=True)
    dialogue = WRITER.example(600, np.random.default_rng(3))
    assert torch.equal(example.columns[0], dialogue.columns[0]), "the same persona"
    new, fewer = ((e.audio_weights == dialogues.NEW_WORDS).sum() for e in (example, dialogue))
    assert new > 2 * fewer


def test_words_that_are_copied_from_the_prompt_have_more_weight() -> None:
    copied = dialogues.COPIED_WEIGHT
    for seed in range(40):
        example = WRITER.example(500, np.random.default_rng(seed))
        if (example.text_weights == copied).any():
            break
    weighted = example.text_weights == copied
    letters = example.targets[weighted, TEXT].tolist()
    values = (*NAMES, *(value.spoken for fact in FACTS.values() for value in fact))
    tokens = {token for value in values for token in Letters().encode(f"{value}.,")}
    assert letters and set(letters) <= tokens
    assert weighted.sum() < (example.targets[:, TEXT] > TEXT_PAD).sum() / 2


def test_the_sound_of_words_outside_the_script_is_learnt_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = AgentClip("My name is Owen. Hello.", torch.zeros(12, 8), [0, 2, 4, 6, 9], copied=[3])
    assert copied_frames(clip).nonzero()[:, 0].tolist() == [6, 7, 8]
    clip = AgentClip("My name is Owen.", torch.zeros(9, 8), [0, 2, 4, 6], copied=[3])
    assert copied_frames(clip).nonzero()[:, 0].tolist() == [6, 7, 8]
    monkeypatch.setattr(dialogues, "_GIVEN_SHARE", 1)
    weights = WRITER.example(500, np.random.default_rng(2)).audio_weights
    assert (weights == dialogues.NEW_WORDS).any() and not (weights == 1)[:-6].all()
    monkeypatch.setattr(dialogues, "_GIVEN_SHARE", 0)
    shares = [WRITER.example(500, np.random.default_rng(seed)).audio_weights for seed in range(20)]
    new = sum(int((weights == dialogues.NEW_WORDS).sum()) for weights in shares)
    assert 0 < new < sum(int((weights == 1).sum()) for weights in shares)


def test_no_sentence_reveals_its_name_before_the_name() -> None:
    clips = share_beginnings(POOL.agent["NATF2"])
    assert clips.keys() == POOL.agent["NATF2"].keys()
    owen, maya = (clips[f"Hello, this is {name}. What can I get you?"] for name in ("Owen", "Maya"))
    name_starts = owen.onsets[3]
    assert torch.equal(owen.codes[:name_starts], maya.codes[:name_starts])
    assert owen.onsets[:3] == maya.onsets[:3]
    assert not torch.equal(owen.codes[name_starts], maya.codes[name_starts])
    assert torch.equal(
        clips["You are welcome."].codes, POOL.agent["NATF2"]["You are welcome."].codes
    )


def test_in_a_listening_example_callers_speak_and_only_their_words_count() -> None:
    example = WRITER.listening(600, np.random.default_rng(5))
    assert example.columns.shape == (600, 17)
    assert not example.text_weights.any() and not example.audio_weights.any()
    assert (example.columns[1:, TEXT] == TEXT_PAD).all()
    dialogue = WRITER.example(600, np.random.default_rng(5))
    words, fewer = ((each.word_ends >= 0).sum() for each in (example, dialogue))
    assert words > 2 * fewer
    ends = (example.word_ends >= 0).nonzero().flatten()
    callers = example.columns[ends - 1, USER_CODES.start]
    assert (callers % 2 == 1).all(), "a word ends where a caller speaks"
