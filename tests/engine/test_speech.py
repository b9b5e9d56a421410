"""Speech of a running session: forced tokens in the step, handles, callbacks and errors."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
import torch

from pipecat_personaplex import Engine, SamplingParams
from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD, ZERO_TOKEN
from pipecat_personaplex.engine.speaker import only_if_word
from pipecat_personaplex.engine.step import force_text
from pipecat_personaplex.errors import ConfigError, SessionFailed, SpeechTooLong
from pipecat_personaplex.interface import Speech
from tests.golden_data import conversation
from tests.helpers.calls import WAIT, Call


def test_force_text_forces_samples_or_replaces_words() -> None:
    own, word = 50, 7
    cases = [
        # sampled, forced, expected
        (own, ZERO_TOKEN, own),
        (TEXT_PAD, ZERO_TOKEN, TEXT_PAD),
        (own, word, word),
        (TEXT_PAD, word, word),
        (own, TEXT_EPAD, TEXT_EPAD),
        (own, only_if_word(word), word),
        (TEXT_PAD, only_if_word(word), TEXT_PAD),
        (TEXT_EPAD, only_if_word(word), TEXT_EPAD),
        (own, only_if_word(TEXT_PAD), TEXT_PAD),
        (own, only_if_word(TEXT_EPAD), TEXT_EPAD),
        (TEXT_EPAD, only_if_word(TEXT_PAD), TEXT_EPAD),
        (own, only_if_word(31_999), 31_999),
    ]
    sampled, forced, expected = torch.tensor(cases).unbind(1)
    assert force_text(sampled, forced).tolist() == expected.tolist()


def test_a_speech_reports_its_progress_and_its_end(engine: Engine) -> None:
    done: queue.Queue[Speech] = queue.Queue()
    call = Call(engine, sampling=SamplingParams(seed=3))
    assert call.session.features >= {"say", "sampling", "hold"}
    speech = call.session.say("Hello there.", when="now", on_done=done.put)
    assert (speech.text, speech.words, speech.state) == ("Hello there.", 2, "waiting")
    call.answer()
    assert speech.state == "speaking"
    pieces = [call.answer().text for _ in range(60)]
    assert "Hello there." in "".join(pieces)
    assert done.get(timeout=WAIT) is speech
    assert speech.state == "said"
    assert speech.spoken <= 2
    call.hang_up()
    assert done.empty()


def test_forced_words_are_the_same_in_every_run_and_batch(engine: Engine) -> None:
    user = conversation("friend").user_pcm.reshape(-1, 1920)[:25]

    def run() -> list[int]:
        call = Call(engine, sampling=SamplingParams(seed=5))
        call.session.say("Good morning to you", when="now")
        tokens = [call.answer(frame).text_token for frame in user]
        call.hang_up()
        return tokens

    alone = run()
    other = Call(engine)
    other.session.say("Something else", when="now")
    other.session.push(np.zeros(25 * 1920, np.float32))
    assert run() == alone
    other.hang_up()


def test_hush_cuts_and_reports_every_speech(engine: Engine) -> None:
    done: list[Speech] = []
    call = Call(engine)
    first = call.session.say("one two three", when="now", on_done=done.append)
    second = call.session.say("four", on_done=done.append)
    for _ in range(3):
        call.answer()
    assert call.session.hush() == [first, second]
    for _ in range(8):
        call.answer()
    call.hang_up()
    assert done == [first, second]
    assert (first.state, second.state) == ("cut", "cut")
    assert first.spoken <= 1


def test_a_hold_places_padding(engine: Engine) -> None:
    user = conversation("friend").user_pcm.reshape(-1, 1920)
    call = Call(engine, sampling=SamplingParams(seed=5, temperature_text=3.0, top_k_text=300))
    call.answer(user[0])
    call.session.hold(0.8)
    call.answer(user[1])  # its text was placed before
    held = [call.answer(frame).text_token for frame in user[2:11]]
    assert held == [TEXT_PAD] * 9
    call.session.hold(30)
    call.session.release()
    free = {call.answer(frame).text_token for frame in user[11:30]}
    assert free - {TEXT_PAD, TEXT_EPAD}
    call.hang_up()


def test_the_end_of_the_session_cuts_and_reports_before_on_end(engine: Engine) -> None:
    reports: queue.Queue[object] = queue.Queue()
    call = Call(engine, on_frame=lambda frame: None)
    call.session._on_end = lambda error: reports.put("end")
    speeches = [call.session.say(text, on_done=reports.put) for text in ("one two", "three")]
    call.hang_up()
    assert [reports.get(timeout=WAIT) for _ in range(3)] == [*speeches, "end"]
    assert [speech.state for speech in speeches] == ["cut", "cut"]
    for act in (
        lambda: call.session.say("late"),
        call.session.hush,
        lambda: call.session.hold(1),
        call.session.release,
    ):
        with pytest.raises(SessionFailed, match="closed"):
            act()


def test_an_on_done_that_raises_ends_the_session_alone(engine: Engine) -> None:
    def broken(speech: Speech) -> None:
        raise ValueError("broken")

    other, call = Call(engine), Call(engine)
    reported: list[Speech] = []
    call.session.say("word", on_done=broken)
    later = call.session.say("later", on_done=reported.append)
    call.session.hush()
    call.session.push(np.zeros(1920, np.float32))
    error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed)
    assert "on_done callback raised ValueError: broken" in str(error)
    assert reported == [later]
    assert other.answer().index == 0
    other.hang_up()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "has no words"),
        (" \n", {}, "has no words"),
        ("\u200b", {}, "has no words"),
        ("good \ud800 morning", {}, "character 5 is half of a surrogate pair"),
        (7, {}, "must be text, not int"),
        ("hello", {"when": "soon"}, "when must be 'pause' or 'now', not 'soon'"),
    ],
)
def test_an_invalid_text_is_refused(
    engine: Engine, text: Any, options: dict[str, Any], message: str
) -> None:
    call = Call(engine)
    with pytest.raises(ConfigError, match=message):
        call.session.say(text, **options)
    assert call.answer().index == 0
    call.hang_up()


def test_a_text_that_is_too_long_is_refused(engine: Engine) -> None:
    call = Call(engine)
    with pytest.raises(SpeechTooLong, match="at most 1500 may wait"):
        call.session.say("much too long a speech " * 200)
    call.session.say("Short.")
    assert call.answer().index == 0
    call.hang_up()


@pytest.mark.parametrize("seconds", [-1, 30.1, float("nan"), float("inf"), "1", True, None])
def test_an_invalid_hold_is_refused(engine: Engine, seconds: Any) -> None:
    call = Call(engine)
    with pytest.raises(ConfigError, match="a number of seconds from 0 to 30, not"):
        call.session.hold(seconds)
    call.hang_up()
