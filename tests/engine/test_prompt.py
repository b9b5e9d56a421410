"""Prompts: tokenised text, the arrangement in the token grid, and the limit on their length."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.checkpoint.voices import Voice
from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.prompt import build_prompt, speech_words, text_prompt_tokens
from pipecat_personaplex.errors import PromptTooLong
from pipecat_personaplex.models.config import ModelConfig

CONFIG = ModelConfig()


class Letters:
    """A tokenizer whose tokens are code points."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def voice(frames: int) -> Voice:
    codes = torch.arange(frames * 8).view(frames, 8)
    return Voice(name="v", codes=codes)


def test_system_tags_are_added_unless_the_text_has_them() -> None:
    def tagged(text: str) -> str:
        return "".join(map(chr, text_prompt_tokens(text, Letters())))

    assert tagged("You are kind.") == "<system> You are kind. <system>"
    assert tagged("  You are kind.\n") == "<system> You are kind. <system>"
    assert tagged("<system> You are kind. <system>") == "<system> You are kind. <system>"
    assert tagged("") == tagged(" \n") == ""


def test_a_prompt_is_arranged_in_the_grid_as_in_the_reference() -> None:
    text = [40, 41, 42]
    prompt = build_prompt(voice(4), text, CONFIG)
    columns = prompt.columns
    assert prompt.frames == 4 + 6 + 3 + 6
    card, text_card = CONFIG.lm.card, CONFIG.lm.text_card
    # Frame 0 is not used: position 0 has initial tokens, and so have the delayed streams of 1.
    assert columns[0].tolist() == [text_card] + [card] * 16
    assert columns[1].tolist() == [3, 8, *[card] * 7, CONFIG.sine_codes[0], *[card] * 7]
    # From position 2: the semantic code of the frame, the acoustic codes of the previous frame.
    assert columns[2, 1:9].tolist() == [16, *range(9, 16)]
    assert columns[4, 1:9].tolist() == [CONFIG.silence_codes[0], *range(25, 32)]
    assert columns[5, 1:9].tolist() == list(CONFIG.silence_codes)
    assert columns[2:-1, 9:].eq(torch.tensor(CONFIG.sine_codes)).all()
    assert columns[1:-1, 0].tolist() == [TEXT_PAD] * 9 + text + [TEXT_PAD] * 6
    assert columns[-1, 2:9].tolist() == list(CONFIG.silence_codes[1:])
    assert columns[-1, 10:].tolist() == list(CONFIG.sine_codes[1:])


def test_a_prompt_longer_than_the_released_window_is_refused() -> None:
    with pytest.raises(PromptTooLong, match=r"takes 3012 frames .* by 13"):
        build_prompt(voice(1000), [40] * 2000, CONFIG)
    assert build_prompt(voice(1000), [40] * 1987, CONFIG).frames == 2999


def test_speech_is_split_into_words_with_their_tokens() -> None:
    assert speech_words(" Good\nAnn. ", Letters()) == [
        ("Good", [ord(letter) for letter in "Good"]),
        ("Ann.", [ord(letter) for letter in "Ann."]),
    ]
    assert speech_words(" \n", Letters()) == []


def test_speech_has_no_padding_and_no_word_without_a_token() -> None:
    class Unknown:
        def encode(self, text: str) -> list[int]:
            return [TEXT_EPAD, 100, TEXT_PAD] if text == "known" else [TEXT_EPAD]

    assert speech_words("un known", Unknown()) == [("known", [100])]
