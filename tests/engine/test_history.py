"""The frames of a call that are stored, and a call that continues in another session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams, SessionFrame
from pipecat_personaplex.constants import FRAME_SAMPLES, STREAMS, TEXT_PAD
from pipecat_personaplex.engine.history import WARM_UP_FRAMES, History, checked_history
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import CallHistory, FrameTimings
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.protocol.call_history import bounded_history
from pipecat_personaplex.remote.record import CallRecord
from tests.helpers.calls import WAIT, Call, tokens
from tests.helpers.questions import question_and_pause

WAITER = Persona("NATF2", RESTAURANT)
TEACHER = Persona("NATM1", "You are a wise and friendly teacher.")
FRAMES = 60
USER = question_and_pause(FRAMES)
GREEDY = SamplingParams.greedy()


def frame(index: int) -> SessionFrame:
    row = np.arange(STREAMS) + index
    return SessionFrame(
        index, np.zeros(FRAME_SAMPLES, np.float32), "", index, row[1:9], row[9:], FrameTimings(0, 0)
    )


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 35])
def test_the_newest_frames_are_stored(count: int) -> None:
    history = History(10)
    for index in range(count):
        history.add(frame(index), np.full(FRAME_SAMPLES, index, np.float32))
    stored = history.snapshot()
    first = max(0, count - 10)
    assert history.frames == count and history.oldest == first
    assert stored.tokens.dtype == np.int16
    np.testing.assert_array_equal(
        stored.tokens, np.arange(first, count)[:, None] + np.arange(STREAMS)
    )
    caller = stored.caller.reshape(-1, FRAME_SAMPLES)[:, 0]
    np.testing.assert_array_equal(caller, np.arange(max(0, count - WARM_UP_FRAMES), count))
    again = History(10, stored)
    np.testing.assert_array_equal(again.snapshot().tokens, stored.tokens)
    np.testing.assert_array_equal(again.snapshot().caller, stored.caller)
    if count:
        np.testing.assert_array_equal(again.since(again.frames - 1), stored.tokens[-1:])


# A call that continues in another session.


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    config = EngineConfig(device="cpu", dtype="float32", max_sessions=4)
    with Engine.load("nano", config) as engine:
        yield engine


@pytest.fixture(scope="module")
def answers(nano: Engine) -> Sequence[SessionFrame]:
    """Frames of WAITER with USER, undisturbed."""
    return nano.converse(WAITER, USER.reshape(-1), GREEDY).frames


@pytest.mark.parametrize("moved_at", [1, 20, WARM_UP_FRAMES])
def test_a_call_goes_on_in_another_session_token_for_token(
    nano: Engine, answers: Sequence[SessionFrame], moved_at: int
) -> None:
    """The codec's state is exact as long as the warm-up covers the whole call."""
    first, neighbour = Call(nano, WAITER, sampling=GREEDY), Call(nano, WAITER, sampling=GREEDY)
    said = [tokens(first.answer(pcm)) for pcm in USER[:moved_at]]
    history = first.session.history()
    first.hang_up()
    second = Call(nano, WAITER, sampling=GREEDY, history=history)
    sound = []
    for index, pcm in enumerate(USER[moved_at:]):
        output = second.answer(pcm)
        assert output.index == index
        said.append(tokens(output))
        sound.append(output.pcm)
        assert tokens(neighbour.answer(USER[index])) == tokens(answers[index])
    assert said == [tokens(frame) for frame in answers]
    assert sum(row[0] != TEXT_PAD for row in said) > 5
    for mine, theirs in zip(sound, answers[moved_at:], strict=True):
        np.testing.assert_allclose(mine, theirs.pcm, atol=1e-4)
    # A call that has moved can move again, and take a new prompt.
    assert len(second.session.history().tokens) == len(USER)
    done: list[object] = []
    second.session.update_prompt(TEACHER, on_done=done.append)
    second.answer()
    second.answer()
    assert done == [None]
    second.hang_up()
    neighbour.hang_up()


def test_a_long_call_moves_with_the_newest_frames(nano: Engine) -> None:
    call = Call(nano, WAITER, sampling=GREEDY)
    for pcm in USER:
        call.answer(pcm)
    history = call.session.history()
    call.hang_up()
    assert history.tokens.shape == (FRAMES, STREAMS)
    assert len(history.caller) == WARM_UP_FRAMES * FRAME_SAMPLES
    many = CallHistory(np.tile(history.tokens, (40, 1)), history.caller)  # 2,400 frames
    again = Call(nano, TEACHER, history=many)
    assert again.answer().index == 0
    slot = next(s for s, live in nano._loop._live.items() if live is again.session)
    assert nano._loop._runner.position(slot) == 511 - 256 + 1  # 20 s are left for the call
    again.hang_up()


@pytest.mark.parametrize("caller", [0, 1, 5])
def test_a_history_with_little_or_no_audio(nano: Engine, caller: int) -> None:
    rows = np.full((7, STREAMS), 3, dtype=np.int16)
    history = CallHistory(rows, np.zeros(caller * FRAME_SAMPLES, dtype=np.float32))
    call = Call(nano, history=history)
    assert call.answer().index == 0
    call.hang_up()


def test_an_empty_history_is_a_new_call(nano: Engine, answers: Sequence[SessionFrame]) -> None:
    empty = CallHistory(np.zeros((0, STREAMS), np.int16), np.zeros(0, np.float32))
    call = Call(nano, WAITER, sampling=GREEDY, history=empty)
    assert [tokens(call.answer(pcm)) for pcm in USER[:10]] == [tokens(f) for f in answers[:10]]
    call.hang_up()


def test_the_golden_checkpoint_whose_prompt_exceeds_its_window(engine: Engine) -> None:
    call = Call(engine)
    for pcm in USER[:50]:
        call.answer(pcm)
    history = call.session.history()
    call.hang_up()
    assert len(history.tokens) == 47
    again = Call(engine, history=history)
    assert [again.answer(pcm).index for pcm in USER[50:]] == list(range(10))
    again.hang_up()


def test_the_history_can_be_read_after_a_fork_in_the_middle_of_a_frame() -> None:
    history = History(10)
    history.add(frame(0), np.zeros(FRAME_SAMPLES, np.float32))
    assert history._lock.acquire()
    history.renew_lock()
    assert len(history.snapshot().tokens) == 1


GOOD = np.zeros((4, STREAMS), dtype=np.int16)
QUIET = np.zeros(2 * FRAME_SAMPLES, dtype=np.float32)


def changed(row: int, column: int, value: int) -> np.ndarray:
    wrong = GOOD.copy()
    wrong[row, column] = value
    return wrong


@pytest.mark.parametrize(
    ("tokens", "caller", "message"),
    [
        (None, QUIET, "not NoneType"),
        (GOOD.tolist(), QUIET, "not list"),
        (GOOD.astype(np.int64), QUIET, r"not int64 \[4, 17\]"),
        (GOOD[:, :16], QUIET, r"not int16 \[4, 16\]"),
        (GOOD[0], QUIET, r"not int16 \[17\]"),
        (np.zeros((3001, STREAMS), np.int16), QUIET, "at most 3000 frames"),
        (changed(0, 0, -1), QUIET, "text tokens from 0 to 3199"),
        (changed(3, 0, 3200), QUIET, "text tokens from 0 to 3199"),
        (changed(2, 1, 512), QUIET, "audio codes from 0 to 511"),
        (changed(2, 16, -5), QUIET, "audio codes from 0 to 511"),
        (GOOD, None, "not NoneType"),
        (GOOD, QUIET.astype(np.float64), r"not float64 \[3840\]"),
        (GOOD, QUIET[:-1], r"not float32 \[3839\]"),
        (GOOD, QUIET.reshape(2, -1), r"not float32 \[2, 1920\]"),
        (GOOD, np.full(FRAME_SAMPLES, np.nan, np.float32), "must be finite"),
        (GOOD, np.full(FRAME_SAMPLES, np.inf, np.float32), "must be finite"),
    ],
)
def test_an_invalid_history_is_refused(
    nano: Engine, tokens: Any, caller: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Call(nano, history=CallHistory(tokens, caller))
    assert nano.stats().sessions == 0


def test_all_that_a_client_stores_of_a_long_call_is_taken_up(nano: Engine) -> None:
    """A client does not know the window of the model."""
    record = CallRecord(CallHistory(np.tile(GOOD, (1_000, 1)), QUIET))
    pcm = np.zeros(FRAME_SAMPLES, np.float32)
    for index in range(10):
        record.add(frame(index), pcm)
    call = Call(nano, history=bounded_history(record.snapshot()))
    assert [call.answer(pcm).index for _ in range(3)] == [0, 1, 2]
    call.hang_up()


@pytest.mark.parametrize("wrong", [GOOD, "history", {}, 0])
def test_a_history_of_another_type_is_refused(nano: Engine, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="history must be a CallHistory"):
        Call(nano, history=wrong)


def test_a_history_is_copied() -> None:
    rows, caller = GOOD.copy(), QUIET.copy()
    checked = checked_history(CallHistory(rows, caller), ModelConfig().lm)
    rows[:] = 999
    caller[:] = np.nan
    assert not checked.tokens.any() and not checked.caller.any()


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=arrays.arrays(
        np.int16, st.tuples(st.integers(0, 40), st.just(STREAMS)), elements=st.integers(0, 511)
    ),
    frames=st.integers(0, 40),
    level=st.sampled_from([0.0, 1e-40, 0.3, -1e30, 1e30]),
)
def test_any_valid_history_gives_a_finite_call_and_changes_no_other(
    nano: Engine, rows: np.ndarray, frames: int, level: float
) -> None:
    neighbour = Call(nano, WAITER, sampling=GREEDY)
    expected = [tokens(neighbour.answer(pcm)) for pcm in USER[:3]]
    neighbour.hang_up()
    neighbour = Call(nano, WAITER, sampling=GREEDY)
    caller = np.full(frames * FRAME_SAMPLES, level, dtype=np.float32)
    call = Call(nano, history=CallHistory(rows, caller))
    for index, pcm in enumerate(USER[:3]):
        assert np.isfinite(call.answer(pcm).pcm).all()
        assert tokens(neighbour.answer(pcm)) == expected[index]
    call.hang_up()
    neighbour.hang_up()
    assert call.ends.get(timeout=WAIT) is None
