"""Prefill: chunks do not change the result, and the prefix cache stores it by persona."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipecat_personaplex import Engine, Persona, SamplingParams
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt, build_prompt, text_prompt_tokens
from tests.golden_data import FRIEND, RESTAURANT, conversation

CPU = torch.device("cpu")


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
    prefill, prefix, chunks = Prefill(lm, prompt, CPU), None, 0
    while prefix is None:
        prefix = prefill.advance(chunk)
        chunks += 1
    assert chunks == -(-prompt.frames // chunk)
    assert prefix.length == whole.length == 158
    assert prefix.first == 158 - 47
    torch.testing.assert_close(prefix.keys, whole.keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prefix.values, whole.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prefix.hidden, whole.hidden, atol=1e-5, rtol=1e-4)


def test_the_next_session_with_the_same_persona_takes_the_cached_prefix(engine: Engine) -> None:
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


def test_the_cache_evicts_the_least_recently_used() -> None:
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


def test_a_cache_of_zero_bytes_stores_nothing() -> None:
    cache = PrefixCache(max_bytes=0)
    cache.put(("a", ()), prefix_of(1))
    assert cache.get(("a", ())) is None
    assert cache.nbytes == 0
