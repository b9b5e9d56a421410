"""Words from the pieces of the inner monologue."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex.words import Word, WordAssembler, spoken_words, words_of

PIECES = st.lists(
    st.sampled_from(["", " ", " He", "llo", ".", " I", "'m", " O", "wen"]), max_size=40
)


def test_pieces_join_until_one_has_a_leading_space() -> None:
    assert words_of([" He", "llo", ",", " I", "'m", " Owen", "."]) == [
        Word("Hello,", 0.0, 0.24),
        Word("I'm", 0.24, 0.4),
        Word("Owen.", 0.4, 0.56),
    ]


def test_padding_moves_words_and_does_not_split_them() -> None:
    assert words_of(["", "", " He", "", "llo", "", "", " there", ""]) == [
        Word("Hello", 0.16, 0.4),
        Word("there", 0.56, 0.64),
    ]


def test_the_first_word_needs_no_leading_space() -> None:
    assert words_of(["", "llo", " you"]) == [Word("llo", 0.08, 0.16), Word("you", 0.16, 0.24)]


def test_a_lone_space_starts_the_word_that_follows() -> None:
    assert words_of([" a", " ", "", "b", "c"]) == [Word("a", 0.0, 0.08), Word("bc", 0.08, 0.4)]


def test_spaces_alone_are_not_a_word() -> None:
    assert words_of([" ", "", " ", " "]) == []


def test_no_pieces_give_no_words() -> None:
    assert words_of([]) == words_of(["", ""]) == []


def test_byte_pieces_become_their_character() -> None:
    assert words_of([" caf", "<0xC3>", "", "<0xA9>", "!"]) == [Word("café!", 0.0, 0.4)]


def test_an_incomplete_character_becomes_a_replacement_character() -> None:
    assert words_of([" a", "<0xC3>", " b"]) == [Word("a�", 0.0, 0.16), Word("b", 0.16, 0.24)]


def test_times_are_round_numbers_late_in_a_call() -> None:
    (word,) = words_of([*[""] * 44_999, " end"])
    assert word == Word("end", 3599.92, 3600.0)


def test_an_assembler_returns_a_word_when_the_next_one_starts() -> None:
    assembler = WordAssembler()
    assert [assembler.push(i, piece) for i, piece in enumerate([" He", "llo", ""])] == [None] * 3
    assert assembler.push(3, " you") == Word("Hello", 0.0, 0.16)
    assert assembler.flush() == Word("you", 0.24, 0.32)
    assert assembler.flush() is None


def test_an_assembler_continues_after_a_flush() -> None:
    assembler = WordAssembler()
    assembler.push(0, " so")
    assert assembler.flush() == Word("so", 0.0, 0.08)
    assert assembler.push(20, "me") is None
    assert assembler.flush() == Word("me", 1.6, 1.68)


@given(PIECES)
def test_words_contain_every_character_in_order_and_do_not_overlap(pieces: list[str]) -> None:
    words = words_of(pieces)
    assert "".join(word.word for word in words) == "".join(pieces).replace(" ", "")
    ends = [0.0, *(word.end for word in words)]
    for word, before in zip(words, ends, strict=False):
        assert before <= word.start < word.end <= round(len(pieces) * 0.08, 2)


def test_it_loads_without_torch_or_numpy() -> None:
    code = "import sys, pipecat_personaplex.words; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What can I — get you?", ["What", "can", "I", "get", "you?"]),
        ("Great\U0001f600 choice \u2764\ufe0f!", ["Great", "choice"]),
        ("\u200bHi\u200d there \u2728 ...", ["Hi", "there"]),
        ("$9.50 + 7 % of 20°C", ["$9.50", "7", "of", "20°C"]),
        ("Café señor, 日本!", ["Café", "señor,", "日本!"]),
        (" - \U0001f600 \n", []),
    ],
)
def test_words_to_say_have_a_letter_or_a_digit_and_no_emoji(text: str, words: list[str]) -> None:
    assert spoken_words(text) == words
