"""A persona that stays in the window of a call that is longer than it."""

from __future__ import annotations

import numpy as np

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from tests.helpers.calls import Call, tokens
from tests.helpers.questions import question_and_pause

USER = question_and_pause(80)
SAMPLED = SamplingParams(seed=5)


def kept(keep: bool) -> tuple[list[list[int]], list[int], int]:
    """Tokens and positions of a call that is longer than its window, and the replays."""
    config = EngineConfig(
        device="cpu", dtype="float32", max_sessions=1, context=128, keep_persona=keep
    )
    with Engine.load("nano", config) as engine:
        call = Call(engine, Persona("NATF2"), sampling=SAMPLED)
        said, positions = [], []
        for pcm in np.tile(USER, (2, 1)):
            said.append(tokens(call.answer(pcm)))
            positions.append(engine._loop._runner.position(0))
        assert 2 * engine._build_prompt(Persona("NATF2")).frames < 127
        call.hang_up()
        return said, positions, engine._loop.counters.replays


def test_a_persona_is_kept_beyond_the_window() -> None:
    said, positions, replays = kept(True)
    forgotten, past, none = kept(False)
    assert none == 0 and replays >= 2
    assert max(past) > 127 > 0.98 * 127 >= max(positions)
    first = next(n for n, position in enumerate(positions) if position < past[n])
    assert said[:first] == forgotten[:first]


def test_a_prompt_of_half_the_window_is_not_kept(engine: Engine) -> None:
    """The golden checkpoint's tokens match the reference beyond the window."""
    before = engine._loop.counters.replays
    call = Call(engine)
    for pcm in USER[:60]:
        call.answer(pcm)
    assert engine._loop.counters.replays == before
    call.hang_up()
