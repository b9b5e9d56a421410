from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex import Engine
from pipecat_personaplex.engine.prompt import speech_words
from pipecat_personaplex.engine.speaker import Speaker
from pipecat_personaplex.interface import Speech
from pipecat_personaplex.service.forced_speech import ForcedSpeech, max_frames
from pipecat_personaplex.words import TURN_GAP_FRAMES

GAP = [""] * TURN_GAP_FRAMES


def expecting(*texts: str) -> ForcedSpeech:
    speech = ForcedSpeech()
    for text in texts:
        speech.expect(text)
    return speech


def frames_until_over(speech: ForcedSpeech, pieces: list[str]) -> int:
    """Frames until the speech counts as over; one more than given if it is not over by then."""
    for index, piece in enumerate(pieces):
        if not speech.frames_left:
            return index
        speech.push(piece)
    return len(pieces) + bool(speech.frames_left)


def test_texts_without_words_are_not_expected():
    speech = expecting("", " ", "\n")
    assert not speech.frames_left
    speech.push(" Hello")
    assert not speech.frames_left


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Good day.", [" Good", "", "", " day", "."]),
        ("Good day.", [" So", ",", "", " Good", " da", "y", "."]),  # after words of the model's own
        ("Good day.", [" Good", " heavens", "", " Good", " day", "."]),
        ("Good day.", [" Good", " Good", " day", "."]),
        ("ha ha hi", [" ha", " hi", " ha", " ha", " hi"]),
        ("  Good\n day. ", [" Good", " day."]),
        ("Zoë", [" Zo", "<0xC3>", "<0xAB>"]),  # a character of two pieces
        ("Zoe\u0308", [" Zo", "ë"]),  # another encoding of the same character
        ("…", [" ..."]),
        ("a" * 40, ["a", *[""] * 12, "a" * 39]),  # a gap within the text
    ],
)
def test_speech_is_over_one_gap_after_its_last_word(text: str, pieces: list[str]):
    assert frames_until_over(expecting(text), pieces + GAP + GAP) == len(pieces + GAP)


def test_speech_is_over_after_the_turn_of_the_last_text():
    pieces = [" Bye", ".", *GAP, " Bye", "!", *GAP[1:], " Take", " care"]
    assert frames_until_over(expecting("Bye.", "Bye!"), pieces + GAP + GAP) == len(pieces + GAP)


def test_more_texts_can_be_expected_later():
    speech = expecting("Bye.")
    assert frames_until_over(speech, [" Bye", ".", *GAP]) == 2 + TURN_GAP_FRAMES
    speech.expect("Bye.")
    assert frames_until_over(speech, ["", " Bye", ".", *GAP]) == 3 + TURN_GAP_FRAMES


@pytest.mark.parametrize("piece", ["", " well", "<0xC3>"])
def test_texts_that_never_appear_count_as_over_at_the_deadline(piece: str):
    speech = expecting("Good day.")
    limit = speech.frames_left
    assert 60 < limit < 120
    assert frames_until_over(speech, [piece] * 1_000) == limit
    # They are not matched any more when other texts are expected.
    speech.expect("Bye.")
    assert frames_until_over(speech, [" Bye", ".", *GAP]) == 2 + TURN_GAP_FRAMES


def test_a_model_that_does_not_stop_counts_as_over_at_the_deadline():
    speech = expecting("Bye.")
    limit = speech.frames_left
    assert frames_until_over(speech, [" Bye", ".", *[" and"] * 1_000]) == limit


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(str.split), min_size=1))
def test_any_words_are_matched(sentences: list[list[str]]):
    words = [word for sentence in sentences for word in sentence]
    speech = expecting(" ".join(words))
    pieces = [f" {word}" for word in words]
    over = frames_until_over(speech, pieces + GAP + GAP)
    assert over == (len(pieces + GAP) if words else 0)


def test_max_frames_is_an_upper_bound(loaded_engine: Engine):
    tokenizer = loaded_engine.checkpoint.tokenizer

    @given(st.text(max_size=60))
    def check(text: str) -> None:
        words = speech_words(text, tokenizer)
        speaker = Speaker()
        if words:
            speaker.say(Speech(text, len(words)), words, at_once=True)
        assert speaker.frames_left <= max_frames(text)

    check()
    check.hypothesis.inner_test(
        "Congratulations, 祝你有美好的一天! \u1e9b\u0323 \ufdfa " + "?" * 50
    )
