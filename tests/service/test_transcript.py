from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pipecat.frames.frames import (
    AggregatedTextFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.utils.text.base_text_aggregator import TextType

from pipecat_personaplex.service.transcript import Transcript
from pipecat_personaplex.words import TURN_GAP_FRAMES

OPENING = [LLMFullResponseStartFrame, TTSStartedFrame]
CLOSING = [TTSStoppedFrame, LLMFullResponseEndFrame]
PIECE = [LLMTextFrame, AggregatedTextFrame, TTSTextFrame]


def types(frames: list[Frame]) -> list[type]:
    return [type(frame) for frame in frames]


def words(frames: list[Frame], kind: type[LLMTextFrame | TTSTextFrame] = TTSTextFrame) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, kind))


def test_the_first_piece_opens_a_turn_and_a_gap_ends_it():
    transcript = Transcript()
    assert transcript.push("") == []
    assert types(transcript.push(" Hel")) == OPENING
    assert transcript.push("lo") == []
    assert words(word := transcript.push("")) == "Hello"
    assert types(word) == PIECE
    for _ in range(TURN_GAP_FRAMES - 2):
        assert transcript.push("") == []
    assert types(transcript.push("")) == CLOSING
    assert transcript.push("") == [] == transcript.close()
    assert types(transcript.push(" again")) == OPENING


def test_a_piece_before_the_gap_ends_continues_the_turn():
    transcript = Transcript()
    transcript.push(" so")
    for _ in range(TURN_GAP_FRAMES - 1):
        transcript.push("")
    assert transcript.push(" then") == []
    assert types(transcript.push("")) == PIECE
    for _ in range(TURN_GAP_FRAMES - 2):
        assert transcript.push("") == []


def test_a_gap_within_given_words_ends_no_turn():
    transcript = Transcript()
    frames = [f for piece in (" and", *[""] * 20) for f in transcript.push(piece, keep_turn=True)]
    frames += transcript.push(" goodbye", keep_turn=True)
    assert types(frames) == OPENING + PIECE
    assert types(transcript.push("", keep_turn=True)) == PIECE
    frames = [f for _ in range(20) for f in transcript.push("", keep_turn=True)]
    assert frames == []
    # The gap counts from the last word, also if it began while words were expected.
    assert types(transcript.push("")) == CLOSING


def test_the_pieces_of_a_word_become_one_frame():
    transcript = Transcript()
    frames = [f for piece in (" Sh", "ak", "sh", "uka", ",", " s") for f in transcript.push(piece)]
    assert [f.text for f in frames if isinstance(f, TTSTextFrame)] == ["Shakshuka,"]
    assert [f.text for f in transcript.close() if isinstance(f, TTSTextFrame)] == [" s"]


def test_frames_are_not_interruptible_and_each_word_reaches_the_context_once():
    transcript = Transcript()
    frames = transcript.push(" Hello") + transcript.push("")
    assert not any(frame.interruptible for frame in frames)
    generated, announced, spoken = frames[2:]
    assert isinstance(generated, LLMTextFrame) and isinstance(spoken, TTSTextFrame)
    assert not generated.append_to_context and spoken.append_to_context
    # A client shows the segment that is announced, and then marks it as spoken.
    assert type(announced) is AggregatedTextFrame and not announced.append_to_context
    assert announced.will_be_spoken and spoken.will_be_spoken
    assert spoken.segment_id == announced.id and spoken.text == announced.text
    assert spoken.includes_inter_frame_spaces and spoken.text_type is TextType.SENTENCE


def test_a_turn_has_no_leading_space_and_keeps_spaces_between_words():
    transcript = Transcript()
    frames = [f for piece in (" ", " How", " are", " you", "?", "") for f in transcript.push(piece)]
    assert words(frames) == words(frames, LLMTextFrame) == "How are you?"
    assert types(frames)[:2] == OPENING


def test_byte_pieces_become_characters():
    transcript = Transcript()
    pieces = (" caf", "<0xC3>", "<0xA9>", " ok", "")
    frames = [f for piece in pieces for f in transcript.push(piece)]
    assert words(frames) == "caf\u00e9 ok"
    frames = transcript.push("<0xE2>") + transcript.push("x") + transcript.push("<0xE2>")
    assert words(frames + transcript.close()) == "\ufffdx\ufffd"


def test_close_ends_a_turn_once():
    transcript = Transcript()
    transcript.push("Yes")
    assert types(transcript.close()) == PIECE + CLOSING
    assert transcript.close() == []


def test_an_interruption_ends_the_turn_before_the_next_piece():
    transcript = Transcript()
    transcript.push(" One")
    transcript.interrupt()
    frames = transcript.push(" two")
    assert types(frames) == PIECE + CLOSING + OPENING
    assert words(frames) == "One"
    # Without an open turn an interruption has no effect, now or later.
    transcript.close()
    transcript.interrupt()
    assert types(transcript.push(" three")) == OPENING
    assert types(transcript.push(" four")) == PIECE


@given(
    st.lists(
        st.sampled_from(["", "", "", " ", " a", "b", "<0xC3>", "<0xA9>", "close", "interrupt"])
    )
)
def test_starts_and_ends_are_always_balanced(script: list[str]):
    transcript = Transcript()
    frames: list[Frame] = []
    for piece in script:
        if piece == "interrupt":
            transcript.interrupt()
        else:
            frames += transcript.close() if piece == "close" else transcript.push(piece)
    frames += transcript.close()
    depth = 0
    for kind in types(frames):
        if kind is LLMFullResponseStartFrame:
            assert depth == 0
        elif kind is TTSStartedFrame:
            assert depth == 1
        elif kind is TTSStoppedFrame:
            assert depth == 2
        elif kind is LLMFullResponseEndFrame:
            assert depth == 1
        else:
            assert depth == 2
        depth += {LLMFullResponseStartFrame: 1, TTSStartedFrame: 1}.get(kind, 0)
        depth -= {TTSStoppedFrame: 1, LLMFullResponseEndFrame: 1}.get(kind, 0)
    assert depth == 0
