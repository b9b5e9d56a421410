from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex import Engine
from pipecat_personaplex.engine.prompt import speech_tokens
from pipecat_personaplex.service.forced_speech import ForcedSpeech, max_frames
from pipecat_personaplex.words import TURN_GAP_FRAMES

GAP = [""] * TURN_GAP_FRAMES


def told(*texts: str) -> ForcedSpeech:
    speech = ForcedSpeech()
    for text in texts:
        speech.expect(text)
    return speech


def frames_until_over(speech: ForcedSpeech, pieces: list[str]) -> int:
    """How many of these frames it takes; one more than there are if it goes on."""
    for index, piece in enumerate(pieces):
        if not speech.frames_left:
            return index
        speech.push(piece)
    return len(pieces) + bool(speech.frames_left)


def test_nobody_is_waited_for_who_was_told_nothing():
    speech = told("", " ", "\n")
    assert not speech.frames_left
    speech.push(" Hello")
    assert not speech.frames_left


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Good day.", [" Good", "", "", " day", "."]),
        ("Good day.", [" So", ",", "", " Good", " da", "y", "."]),  # its own words come before
        ("Good day.", [" Good", " heavens", "", " Good", " day", "."]),
        ("Good day.", [" Good", " Good", " day", "."]),
        ("ha ha hi", [" ha", " hi", " ha", " ha", " hi"]),
        ("  Good\n day. ", [" Good", " day."]),
        ("Zoë", [" Zo", "<0xC3>", "<0xAB>"]),  # a character of two pieces
        ("Zoe\u0308", [" Zo", "ë"]),  # written in one way, said in another
        ("…", [" ..."]),
        ("a" * 40, ["a", *[""] * 12, "a" * 39]),  # a gap inside them ends nothing
    ],
)
def test_words_are_over_a_gap_after_the_last_of_them(text: str, pieces: list[str]):
    assert frames_until_over(told(text), pieces + GAP + GAP) == len(pieces + GAP)


def test_several_texts_are_waited_for_and_what_follows_in_their_turn_too():
    pieces = [" Bye", ".", *GAP, " Bye", "!", *GAP[1:], " Take", " care"]
    assert frames_until_over(told("Bye.", "Bye!"), pieces + GAP + GAP) == len(pieces + GAP)


def test_it_can_be_told_again():
    speech = told("Bye.")
    assert frames_until_over(speech, [" Bye", ".", *GAP]) == 2 + TURN_GAP_FRAMES
    speech.expect("Bye.")
    assert frames_until_over(speech, ["", " Bye", ".", *GAP]) == 3 + TURN_GAP_FRAMES


@pytest.mark.parametrize("piece", ["", " well", "<0xC3>"])
def test_words_that_never_come_are_given_up(piece: str):
    speech = told("Good day.")
    most = speech.frames_left
    assert 60 < most < 120
    assert frames_until_over(speech, [piece] * 1_000) == most
    # And are not looked for when it is told others.
    speech.expect("Bye.")
    assert frames_until_over(speech, [" Bye", ".", *GAP]) == 2 + TURN_GAP_FRAMES


def test_a_model_that_talks_on_is_not_waited_for_for_ever():
    speech = told("Bye.")
    most = speech.frames_left
    assert frames_until_over(speech, [" Bye", ".", *[" and"] * 1_000]) == most


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(str.split), min_size=1))
def test_words_in_any_pieces_are_found(sentences: list[list[str]]):
    words = [word for sentence in sentences for word in sentence]
    speech = told(" ".join(words))
    pieces = [f" {word}" for word in words]
    over = frames_until_over(speech, pieces + GAP + GAP)
    assert over == (len(pieces + GAP) if words else 0)


def test_no_text_takes_more_frames_than_is_thought(loaded_engine: Engine):
    tokenizer = loaded_engine.checkpoint.tokenizer

    @given(st.text(max_size=60))
    def check(text: str) -> None:
        assert len(speech_tokens(text, tokenizer)) <= max_frames(text)

    check()
    check.hypothesis.inner_test(
        "Congratulations, 祝你有美好的一天! \u1e9b\u0323 \ufdfa " + "?" * 50
    )
