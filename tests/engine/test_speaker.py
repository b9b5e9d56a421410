"""The speaker as a state machine, with a fake model that places tokens as the step does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.speaker import SAMPLE, only_if_word
from pipecat_personaplex.errors import SpeechTooLong
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, Speech
from tests.engine.speaking_agent import OWN_WORD, Agent


def talkative(tokens: list[int]) -> int:
    """A model that samples a word in every third frame."""
    return OWN_WORD if len(tokens) % 3 == 2 else TEXT_PAD


def test_nothing_is_forced_without_a_speech() -> None:
    agent = Agent(talkative)
    assert agent.speaker.idle
    assert agent.steps(6) == [TEXT_PAD, TEXT_PAD, OWN_WORD] * 2
    assert agent.speaker.next(False) == SAMPLE


def test_a_speech_starts_with_epad_and_its_first_word() -> None:
    agent = Agent()
    speech = agent.say("Hi there")
    assert agent.steps(3) == [TEXT_EPAD, 100 + ord("H"), 100 + ord("i")]
    assert speech.state == "speaking"


def test_the_next_word_takes_the_place_of_the_models_own() -> None:
    agent = Agent()
    agent.say("a b")
    agent.steps(2)
    assert agent.steps(4) == [TEXT_PAD] * 4  # the model pads, so the word waits
    agent.sample = lambda tokens: OWN_WORD
    assert agent.step() == 100 + ord("b")


def test_the_next_word_follows_an_epad_of_the_model() -> None:
    agent = Agent()
    agent.say("a b")
    agent.steps(2)
    agent.sample = lambda tokens: TEXT_EPAD
    assert agent.step() == TEXT_EPAD
    assert agent.step() == 100 + ord("b")


def test_a_word_is_forced_if_the_model_does_not_continue() -> None:
    agent = Agent()
    agent.say("a b")
    tokens = agent.steps(15)
    # Behind the first word at index 1: its one frame, and the patience of ten.
    assert tokens[1 + 1 + 10 + 1 :] == [TEXT_EPAD, 100 + ord("b")]


def test_a_word_waits_for_the_caller_for_ten_seconds_at_most() -> None:
    agent = Agent()
    agent.say("a b")
    agent.steps(2)
    # Its length and the patience, then 10 s.
    assert agent.steps(11 + 124, caller_speaks=True) == [TEXT_PAD] * (11 + 124)
    assert agent.steps(2, caller_speaks=True) == [TEXT_EPAD, 100 + ord("b")]


def test_the_models_words_for_a_caller_are_not_replaced_once_its_voice_pauses() -> None:
    agent = Agent()
    agent.say("ab cd")
    agent.steps(3)
    agent.audible = False
    agent.steps(5, caller_speaks=True)
    agent.sample = lambda tokens: OWN_WORD  # for example "uh-huh"
    assert agent.steps(3, caller_speaks=True) == [TEXT_PAD] * 3
    assert agent.step() == 100 + ord("c")


def test_a_word_continues_when_the_caller_has_finished() -> None:
    agent = Agent()
    agent.say("a b")
    agent.steps(2)
    agent.steps(40, caller_speaks=True)
    assert agent.steps(2) == [TEXT_EPAD, 100 + ord("b")]


def test_only_padding_is_allowed_behind_a_speech() -> None:
    agent = Agent(talkative)
    speech = agent.say("Bye.")
    agent.steps(2 + 3)
    tokens = agent.steps(19)
    assert speech.state == "said"
    assert OWN_WORD not in tokens
    assert OWN_WORD in agent.steps(6)
    assert agent.speaker.idle


def test_the_model_may_answer_a_caller_right_behind_a_speech() -> None:
    agent = Agent()
    speech = agent.say("a")
    while speech.state != "said":
        agent.step()
    agent.sample = lambda tokens: OWN_WORD
    assert agent.steps(5, caller_speaks=True) == [TEXT_PAD] * 5, "not while the caller speaks"
    assert agent.steps(2) == [OWN_WORD] * 2


def test_the_time_behind_a_speech_passes_in_a_hold() -> None:
    agent = Agent()
    agent.speaker.hold(3.2)
    speech = agent.say("a")
    agent.steps(40)
    assert speech.state == "said"
    agent.sample = lambda tokens: OWN_WORD
    assert agent.step() == OWN_WORD


def test_a_caller_who_ends_in_a_hold_is_answered_at_once_behind_it() -> None:
    agent = Agent()
    speech = agent.say("a")
    while speech.state != "said":
        agent.step()
    agent.speaker.hold(0.24)
    agent.step(caller_speaks=True)
    agent.steps(2)
    agent.sample = lambda tokens: OWN_WORD
    assert agent.step() == OWN_WORD


def test_pause_waits_for_the_end_of_the_models_own_words() -> None:
    agent = Agent(lambda tokens: OWN_WORD if len(tokens) < 10 else TEXT_PAD)
    agent.steps(2)
    agent.say("a")
    tokens = agent.steps(12)
    assert tokens[:8] == [OWN_WORD] * 8
    assert tokens[8:] == [TEXT_PAD] * 3 + [TEXT_EPAD]


def test_pause_interrupts_the_model_after_2_4_s() -> None:
    agent = Agent(lambda tokens: OWN_WORD)
    agent.steps(2)
    agent.say("a")
    assert agent.steps(31) == [OWN_WORD] * 30 + [TEXT_EPAD]


def test_pause_waits_for_the_caller_for_10_s_at_most() -> None:
    agent = Agent()
    agent.say("a")
    assert agent.steps(126, caller_speaks=True) == [TEXT_PAD] * 125 + [TEXT_EPAD]


def test_the_model_begins_no_sentence_while_a_speech_waits_for_the_caller() -> None:
    agent = Agent()
    agent.steps(4)
    agent.say("a")
    agent.sample = lambda tokens: OWN_WORD
    assert agent.steps(10, caller_speaks=True) == [TEXT_PAD] * 10
    assert agent.steps(2) == [TEXT_EPAD, 100 + ord("a")]


def test_the_models_sentence_goes_on_while_a_speech_waits_for_the_caller() -> None:
    agent = Agent(lambda tokens: OWN_WORD if len(tokens) < 8 else TEXT_PAD)
    agent.steps(2)
    agent.say("a")
    assert agent.steps(9, caller_speaks=True) == [OWN_WORD] * 6 + [TEXT_PAD] * 3


def test_now_starts_in_the_next_frame() -> None:
    agent = Agent(lambda tokens: OWN_WORD)
    agent.steps(2)
    agent.say("a", at_once=True)
    assert agent.steps(2, caller_speaks=True) == [TEXT_EPAD, 100 + ord("a")]


def test_a_hold_is_silent_for_its_time() -> None:
    agent = Agent(lambda tokens: OWN_WORD)
    agent.speaker.hold(0.24)
    assert agent.steps(4) == [TEXT_PAD] * 3 + [OWN_WORD]
    agent.speaker.hold(30)
    agent.step()
    agent.speaker.hold(0)
    assert agent.step() == OWN_WORD


def test_a_speech_is_spoken_during_a_hold_which_then_continues() -> None:
    agent = Agent(talkative)
    agent.speaker.hold(30)
    agent.steps(5)
    speech = agent.say("a b")
    agent.steps(40)
    assert speech.state == "said"
    assert agent.letters == "ab"
    assert OWN_WORD not in agent.tokens


def test_hush_finishes_the_word_and_drops_the_others() -> None:
    agent = Agent()
    first, second = agent.say("Hello world"), agent.say("again")
    agent.steps(3)
    assert agent.speaker.hush() == [first, second]
    agent.steps(20)
    assert agent.letters == "Hello"
    assert (first.state, first.spoken, second.state, second.spoken) == ("cut", 1, "cut", 0)
    assert agent.finished == [first, second]


def test_hush_of_one_speech_leaves_the_others() -> None:
    agent = Agent(talkative)
    first, second, third = agent.say("a b"), agent.say("c"), agent.say("d")
    agent.steps(2)
    assert agent.speaker.hush(second) == [second]
    agent.steps(60)
    assert agent.letters == "abd"
    assert [speech.state for speech in (first, second, third)] == ["said", "cut", "said"]


def test_hush_in_the_last_word_cuts_nothing() -> None:
    agent = Agent()
    speech = agent.say("Hello")
    agent.steps(3)
    assert agent.speaker.hush() == []
    agent.steps(20)
    assert (speech.state, speech.spoken) == ("said", 1)


def test_hush_during_the_step_that_places_a_word_counts_the_word() -> None:
    agent = Agent()
    speech = agent.say("ab c")
    agent.step()
    agent.step(during=agent.speaker.hush)
    assert speech.state == "cut"
    agent.steps(10)
    assert agent.letters == "ab"
    assert (speech.spoken, agent.finished) == (1, [speech])


def test_a_word_that_does_not_sound_is_not_spoken() -> None:
    agent = Agent(talkative)
    speech = agent.say("a b c")
    agent.audible = False
    agent.steps(60)
    assert (speech.state, speech.spoken) == ("said", 0)


@pytest.mark.parametrize(("quiet", "spoken"), [(4, 1), (5, 0)])
def test_a_word_may_sound_late(quiet: int, spoken: int) -> None:
    agent = Agent()
    speech = agent.say("a")
    agent.steps(2)  # the word is placed
    agent.audible = False
    agent.steps(quiet)
    agent.audible = True
    agent.steps(20)
    assert (speech.state, speech.spoken) == ("said", spoken)


@pytest.mark.parametrize("times", [1, 2])
def test_a_word_that_the_caller_has_silenced_is_said_again_once(times: int) -> None:
    agent = Agent(talkative)
    speech = agent.say("a b c")
    for letters in ("ab", "abb")[:times]:
        for _ in range(20):
            if agent.letters != letters:
                agent.step()
        # The caller begins in the frame in which the word was placed: the model gives way.
        agent.audible, agent.sample = False, lambda tokens: TEXT_PAD
        agent.steps(20, caller_speaks=True)
        assert agent.letters == letters
        agent.audible, agent.sample = True, talkative
    agent.steps(40)
    assert agent.letters == "abbc"
    assert (speech.state, speech.spoken) == ("said", 4 - times)


def test_a_word_that_does_not_sound_to_a_silent_caller_is_not_repeated() -> None:
    agent = Agent(talkative, audible=False)
    speech = agent.say("a bb c")
    agent.steps(60)
    assert (agent.letters, speech.state, speech.spoken) == ("abbc", "said", 0)


def test_a_speech_that_does_not_fit_is_refused_whole() -> None:
    agent = Agent()
    agent.say("hello " * 100)
    left = agent.speaker.frames_left
    with pytest.raises(SpeechTooLong, match=f"at most {MAX_SPEECH_FRAMES} may wait"):
        agent.say("hello " * 400)
    assert agent.speaker.frames_left == left


def test_the_end_of_a_session_cuts_what_is_left() -> None:
    agent = Agent()
    speeches = [agent.say("a b"), agent.say("c")]
    agent.steps(3)
    agent.speaker.close()
    assert [speech.state for speech in speeches] == ["cut", "cut"]


frames = st.tuples(st.just("step"), st.booleans(), st.booleans(), st.integers(0, 3))
calls = st.one_of(
    st.tuples(st.just("say"), st.text("abc. ", min_size=1, max_size=12), st.booleans()),
    st.tuples(st.just("hush"), st.none() | st.integers(0, 5)),
    st.tuples(st.just("hold"), st.floats(0, 3)),
    st.tuples(st.just("release")),
)
OWN_TOKENS = (TEXT_PAD, TEXT_EPAD, OWN_WORD, OWN_WORD)


@given(st.lists(st.one_of(frames, frames, frames, calls), max_size=120), st.randoms())
def test_any_interleaving_ends_every_speech_once_and_in_order(script: list, random) -> None:  # type: ignore[type-arg,no-untyped-def]
    agent = Agent()
    speeches: list[Speech] = []

    def apply(call: tuple) -> None:  # type: ignore[type-arg]
        match call:
            case ("say", text, at_once):
                if text.split():
                    speeches.append(agent.say(text, at_once))
            case ("hush", None):
                agent.speaker.hush()
            case ("hush", index):
                agent.speaker.hush(speeches[index] if index < len(speeches) else Speech("x", 1))
            case ("hold", seconds):
                agent.speaker.hold(seconds)
            case ("release",):
                agent.speaker.hold(0)

    began: list[Speech] = []

    def check() -> None:
        for speech in speeches:
            assert 0 <= speech.spoken <= speech.words
            if speech.state == "speaking" and speech not in began:
                began.append(speech)
        assert sum(speech.state == "speaking" for speech in speeches) <= 1

    pending: list[tuple] = []  # type: ignore[type-arg]

    def apply_pending() -> None:
        while pending:
            apply(pending.pop(0))

    for call in script:
        if call[0] == "step":
            _, caller_speaks, agent.audible, own = call
            agent.sample = lambda tokens, own=own: OWN_TOKENS[own]  # type: ignore[misc]
            agent.step(caller_speaks, during=apply_pending)
        elif random.random() < 0.3:
            pending.append(call)  # during the next step
        else:
            apply(call)
        check()
    apply_pending()
    # Every wait ends, also with a caller who never stops and a model that never speaks.
    agent.speaker.hold(0)
    agent.sample = lambda tokens: TEXT_PAD
    limit = sum(300 * (speech.words + 2) for speech in speeches) + 50
    for _ in range(limit):
        if agent.speaker.idle:
            break
        agent.step(caller_speaks=True)
        check()
    assert agent.speaker.idle
    assert sorted(map(id, agent.finished)) == sorted(map(id, speeches))
    assert all(speech.state in ("said", "cut") for speech in speeches)
    assert began == [speech for speech in speeches if speech in began]


def test_codes() -> None:
    assert only_if_word(0) == -2
    assert only_if_word(7) == -9
