"""Forced speech and hold with nano: a few scenes of ``training.nano.steering_scenes``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

from pipecat_personaplex import Engine, EngineConfig
from training.nano import script, steering_scenes

T = TypeVar("T")


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=3)) as engine:
        yield engine


def each(run: Callable[[Engine, int], T], engine: Engine, *seeds: int) -> list[T]:
    """Run scenes side by side."""
    with ThreadPoolExecutor(len(seeds)) as threads:
        return list(threads.map(lambda seed: run(engine, seed), seeds))


def test_forced_words_are_heard_soon_and_clearly(nano: Engine) -> None:
    # Sentences without a name or a fact of the prompt; see the limits in nano's README.
    plain = each(steering_scenes.forced, nano, 0, 3, 5)
    assert min(stoi for stoi, _, _ in plain) >= 0.8
    scenes = [*plain, *each(partial(steering_scenes.forced, clarity=False), nano, 1, 2)]
    _, delays, behind = zip(*scenes, strict=True)
    assert max(delays) <= 0.24
    assert sum(count > 0 for count in behind) <= 1


def test_words_sound_while_a_caller_talks_over_them(nano: Engine) -> None:
    call = steering_scenes.talked_over(nano, 1)
    assert call.placed == call.words
    assert call.heard >= call.placed - 1
    assert abs(call.counted - call.heard) <= 1
    assert call.behind in ("", script.BACKCHANNEL)


def test_hush_makes_the_agent_quiet_and_the_caller_is_answered(nano: Engine) -> None:
    cuts = each(steering_scenes.interrupted, nano, 0, 1)
    assert all(cut.quiet_after_hush <= 0.5 for cut in cuts)
    assert any(cut.answered for cut in cuts)
    assert all(abs(cut.spoken - cut.heard) <= 1 for cut in cuts)


def test_a_held_agent_is_silent_and_can_speak_afterwards(nano: Engine) -> None:
    assert each(steering_scenes.held, nano, 0, 2) == [(0, True)] * 2
    assert any(each(steering_scenes.released, nano, 0, 1))
