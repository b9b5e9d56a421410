from __future__ import annotations

import pytest

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, Speech
from pipecat_personaplex.service.call_events import SpeechEnded, SpeechRejected
from pipecat_personaplex.service.speech import CallSpeech, RequestedText, estimated_seconds
from pipecat_personaplex.words import TURN_GAP_FRAMES
from tests.helpers.engines import FakeEngine


class Mouth:
    """A session that speaks when a test says so."""

    def __init__(self) -> None:
        self.id = "0123abcd"
        self.speeches: list[Speech] = []
        self.hushed: list[Speech] = []

    def say(self, text: str, *, when: str, on_done: object) -> Speech:
        if not text.strip():
            raise ConfigError("nothing to say")
        self.speeches.append(Speech(text, len(text.split())))
        return self.speeches[-1]

    def hush(self, speech: Speech) -> list[Speech]:
        self.hushed.append(speech)
        return [speech]


def texts(mouth: Mouth | None, *requested: tuple[str, bool]) -> CallSpeech:
    speech = CallSpeech()
    for text, interruptible in requested:
        speech.say(RequestedText(text, "pause", interruptible))
    if mouth is not None:
        speech.attach(mouth, lambda report: None)  # type: ignore[arg-type]
    return speech


def finish(speech: CallSpeech, mouth: Mouth, index: int = 0) -> bool:
    mouth.speeches[index].state = "said"
    return speech.end(mouth.speeches[index])


def test_texts_wait_for_a_session_in_order() -> None:
    speech = texts(None, ("One.", True), ("Two.", True))
    assert speech.unfinished and speech.seconds_left > 0
    mouth = Mouth()
    speech.attach(mouth, lambda report: None)  # type: ignore[arg-type]
    assert [one.text for one in mouth.speeches] == ["One.", "Two."]


def test_a_turn_ends_with_a_gap_after_the_last_word() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("Bye.", True))
    speech.push(" Bye")
    finish(speech, mouth)
    assert not speech.unfinished
    for _ in range(TURN_GAP_FRAMES):
        assert speech.seconds_left == pytest.approx(TURN_GAP_FRAMES * FRAME_SECONDS)
        speech.push("")
    assert speech.seconds_left == 0


def test_words_of_the_models_own_extend_the_turn() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("Bye.", True))
    speech.push(" Bye")
    finish(speech, mouth)
    for piece in ["", "", " Take", " care", *[""] * (TURN_GAP_FRAMES - 1)]:
        speech.push(piece)
        assert speech.seconds_left > 0
    speech.push("")
    assert speech.seconds_left == 0


def test_a_turn_of_a_model_that_does_not_stop_is_over_after_five_seconds() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("Bye.", True))
    finish(speech, mouth)
    frames = 0
    while speech.seconds_left:
        speech.push(" and")
        frames += 1
    assert 60 <= frames <= 65


def test_the_start_of_each_speech_is_reported_once() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("One.", True), ("Two.", True))
    first, second = mouth.speeches
    assert speech.push("") == []
    first.state = "speaking"
    assert not speech.speaking
    assert speech.push(" One") == [first]
    assert speech.push("") == [] and speech.speaking
    assert not finish(speech, mouth)
    assert not speech.speaking
    # The second one begins and ends between two frames.
    assert finish(speech, mouth, 1)
    assert not speech.unfinished
    assert second.state == "said"


def test_a_text_that_is_cut_before_it_begins_has_not_begun() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("One.", True))
    mouth.speeches[0].state = "cut"
    assert not speech.end(mouth.speeches[0])
    assert speech.seconds_left == 0


def test_the_caller_cuts_interruptible_texts_once_one_has_begun() -> None:
    mouth = Mouth()
    speech = texts(mouth, ("Never cut.", False), ("One.", True), ("Two.", True))
    never, one, two = mouth.speeches
    speech.interrupt()
    never.state = "speaking"
    speech.interrupt()
    assert mouth.hushed == []  # what waits for a pause goes on waiting
    finish(speech, mouth)
    one.state = "speaking"
    speech.interrupt()
    assert mouth.hushed == [one, two]


def test_hush_cuts_interruptible_texts_that_wait() -> None:
    speech = texts(None, ("Never cut.", False), ("One.", True))
    speech.hush()
    mouth = Mouth()
    speech.attach(mouth, lambda report: None)  # type: ignore[arg-type]
    assert [one.text for one in mouth.speeches] == ["Never cut."]
    speech.say(RequestedText("Two.", "pause", interruptible=True))
    speech.hush()
    assert [one.text for one in mouth.hushed] == ["Two."]


def test_texts_end_with_their_session() -> None:
    speech = texts(Mouth(), ("One.", True))
    speech.detach()
    assert not speech.unfinished and speech.seconds_left == 0
    speech.say(RequestedText("Two.", "pause", interruptible=True))
    assert speech.unfinished


def test_refused_texts_and_ends_are_reported(fake: FakeEngine) -> None:
    session = fake.open_session(Persona("NATF2"), on_frame=lambda frame: None)
    reports: list[SpeechEnded | SpeechRejected] = []
    speech = CallSpeech()
    speech.attach(session, reports.append)
    speech.say(RequestedText(" ", "pause", interruptible=True))
    [rejected] = reports
    assert isinstance(rejected, SpeechRejected)
    assert (rejected.text, rejected.session_id) == (" ", session.id)
    speech.say(RequestedText("Hello.", "now", interruptible=True))
    assert session.said_when == ["now"]
    session.close()
    assert session.wait_ended(10)
    assert isinstance(reports[1], SpeechEnded) and reports[1].speech.state == "cut"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("Hello!", 0.5), ("We are open until nine tonight, and until six on Sundays.", 3.5)],
)
def test_the_estimate_is_at_least_the_time_that_speakers_take(text: str, seconds: float) -> None:
    assert seconds < estimated_seconds([text]) < 2.5 * seconds


def test_the_estimate_is_at_most_what_a_session_accepts() -> None:
    assert estimated_seconds(["word " * 100_000]) == MAX_SPEECH_FRAMES * FRAME_SECONDS


def test_texts_without_words_take_no_time() -> None:
    assert estimated_seconds([]) == estimated_seconds(["", " \n"]) == 0
