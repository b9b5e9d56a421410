"""Prompts: their layout, their prefill in any chunks, and the cache of what they leave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipecat_personaplex import Engine, Persona, SamplingParams
from pipecat_personaplex.checkpoint.voices import Voice
from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import (
    Prompt,
    build_prompt,
    speech_tokens,
    text_prompt_tokens,
)
from pipecat_personaplex.errors import PromptTooLong
from pipecat_personaplex.models.config import ModelConfig
from tests.golden_data import FRIEND, RESTAURANT, conversation

CPU = torch.device("cpu")
CONFIG = ModelConfig()


class Letters:
    """A tokenizer whose tokens are code points."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def voice(frames: int) -> Voice:
    codes = torch.arange(frames * 8).view(frames, 8)
    return Voice(name="v", codes=codes)


def test_text_is_put_between_system_tags_unless_it_has_them() -> None:
    def tagged(text: str) -> str:
        return "".join(map(chr, text_prompt_tokens(text, Letters())))

    assert tagged("You are kind.") == "<system> You are kind. <system>"
    assert tagged("  You are kind.\n") == "<system> You are kind. <system>"
    assert tagged("<system> You are kind. <system>") == "<system> You are kind. <system>"
    assert tagged("") == tagged(" \n") == ""


def test_frames_of_a_prompt_stand_in_the_grid_as_the_reference_lays_them() -> None:
    text = [40, 41, 42]
    prompt = build_prompt(voice(4), text, CONFIG)
    columns = prompt.columns
    assert prompt.frames == 4 + 6 + 3 + 6
    card, text_card = CONFIG.lm.card, CONFIG.lm.text_card
    # Frame 0 is lost: position 0 is initial, and so are the delayed streams of position 1.
    assert columns[0].tolist() == [text_card] + [card] * 16
    assert columns[1].tolist() == [3, 8, *[card] * 7, CONFIG.sine_codes[0], *[card] * 7]
    # From then on: semantic codes of this frame, acoustic ones of the frame before.
    assert columns[2, 1:9].tolist() == [16, *range(9, 16)]
    assert columns[4, 1:9].tolist() == [CONFIG.silence_codes[0], *range(25, 32)]
    assert columns[5, 1:9].tolist() == list(CONFIG.silence_codes)
    assert columns[2:-1, 9:].eq(torch.tensor(CONFIG.sine_codes)).all()
    assert columns[1:-1, 0].tolist() == [TEXT_PAD] * 9 + text + [TEXT_PAD] * 6
    assert columns[-1, 2:9].tolist() == list(CONFIG.silence_codes[1:])
    assert columns[-1, 10:].tolist() == list(CONFIG.sine_codes[1:])


def test_a_prompt_longer_than_the_released_window_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(PromptTooLong, match=r"takes 3012 frames .* by at least 13 tokens"):
        build_prompt(voice(1000), [40] * 2000, CONFIG)
    assert build_prompt(voice(1000), [40] * 1987, CONFIG).frames == 2999


def golden_prompt(engine: Engine, persona: Persona) -> Prompt:
    checkpoint = engine.checkpoint
    tokens = text_prompt_tokens(persona.text_prompt, checkpoint.tokenizer)
    return build_prompt(engine._voices.get(persona.voice), tokens, checkpoint.config)


@pytest.mark.parametrize("chunk", [1, 7, 48, 1000])
def test_chunks_do_not_change_the_prefix(loaded_engine: Engine, chunk: int) -> None:
    lm = loaded_engine.checkpoint.lm
    prompt = golden_prompt(loaded_engine, RESTAURANT)
    whole = Prefill(lm, prompt, CPU).advance(prompt.frames)
    assert whole is not None
    prefill, prefix, runs = Prefill(lm, prompt, CPU), None, 0
    while prefix is None:
        prefix = prefill.advance(chunk)
        runs += 1
    assert runs == -(-prompt.frames // chunk)
    assert prefix.length == whole.length == 158
    assert prefix.first == 158 - 47
    torch.testing.assert_close(prefix.keys, whole.keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prefix.values, whole.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prefix.hidden, whole.hidden, atol=1e-5, rtol=1e-4)


def test_the_next_caller_with_the_same_persona_gets_the_kept_prefix(engine: Engine) -> None:
    pcm = conversation("friend").user_pcm[:19_200]
    before = engine.stats()
    first = engine.converse(FRIEND, pcm, SamplingParams(seed=2))
    middle = engine.stats()
    second = engine.converse(replace(FRIEND), pcm, SamplingParams(seed=2))
    after = engine.stats()
    assert middle.prefix_misses - before.prefix_misses <= 1
    assert after.prefix_misses == middle.prefix_misses
    assert after.prefix_hits == middle.prefix_hits + 1
    assert [f.text_token for f in first.frames] == [f.text_token for f in second.frames]


def prefix_of(size: int) -> Prefix:
    empty = torch.zeros(0)
    return Prefix(keys=torch.zeros(size), values=empty, hidden=empty, column=empty, length=1)


def test_the_cache_lets_go_of_the_least_recently_used() -> None:
    cache = PrefixCache(max_bytes=3 * 400)
    for name in "abc":
        cache.put((name, ()), prefix_of(100))
    assert cache.nbytes == 1200
    assert cache.get(("a", ())) is not None
    cache.put(("d", ()), prefix_of(100))
    assert cache.get(("b", ())) is None
    assert all(cache.get((name, ())) is not None for name in "acd")
    cache.put(("huge", ()), prefix_of(301))
    assert cache.get(("huge", ())) is None
    assert len(cache) == 3
    cache.put(("wide", ()), prefix_of(300))
    assert len(cache) == 1
    assert cache.nbytes == 1200


def test_no_room_at_all_is_a_cache_that_keeps_nothing() -> None:
    cache = PrefixCache(max_bytes=0)
    cache.put(("a", ()), prefix_of(1))
    assert cache.get(("a", ())) is None
    assert cache.nbytes == 0


def test_forced_words_come_at_a_speaking_pace() -> None:
    tokens = speech_tokens("Good morning, Ann.", Letters())
    said = [chr(t) for t in tokens if t not in (TEXT_PAD, TEXT_EPAD)]
    assert "".join(said) == "Goodmorning,Ann."
    assert tokens[0] == TEXT_EPAD
    assert tokens.count(TEXT_EPAD) == 3
    assert speech_tokens("", Letters()) == []

    class Words:
        def encode(self, text: str) -> list[int]:
            return [100]

    tokens = speech_tokens("extraordinary day. Then", Words())
    starts = [index for index, token in enumerate(tokens) if token == 100]
    # A 13-letter word lasts 11 frames; a full stop is a pause.
    assert starts == [1, 12, 19]
