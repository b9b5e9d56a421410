"""Callbacks that are slow or never return: what becomes of their session, and of the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipecat_personaplex import Engine, EngineConfig, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import EngineFailed, PersonaPlexError, SessionFailed
from tests.golden_data import CHECKPOINT, FRIEND, RESTAURANT, conversation
from tests.helpers.calls import SILENCE, WAIT, Call, says, tracked
from tests.helpers.logs import recorded


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give callbacks up after 0.2 s instead of 5 s."""
    monkeypatch.setattr("pipecat_personaplex.engine.model_thread.CHECK_SECONDS", 0.01)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Callbacks that wait for it return at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def waiting(gate: threading.Event) -> tuple[threading.Event, Callable[[object], None]]:
    """A callback that waits for ``gate``, and an event that is set once it is entered."""
    entered = threading.Event()

    def wait(_: object) -> None:
        entered.set()
        assert gate.wait(WAIT)

    return entered, wait


class Stuck:
    """A session one of whose callbacks waits for ``gate``; ``ends`` has its end."""

    def __init__(self, engine: Engine, gate: threading.Event, name: str):
        self.entered = threading.Event()
        self.ends: queue.Queue[PersonaPlexError | None] = queue.Queue()

        def wait(*_: object) -> None:
            self.entered.set()
            assert gate.wait(WAIT)

        callbacks: dict[str, Callable[..., Any]] = {
            "on_frame": lambda frame: None,
            "on_end": self.ends.put,
        }
        done = None
        if name == "on_done":
            done = wait
        else:
            callbacks[name] = wait
        self.session = tracked(engine.open_session(FRIEND, **callbacks))
        if name == "on_end":
            self.session.close()
        elif name == "on_done":
            assert self.session.wait_ready(WAIT)
            self.session.update_prompt(RESTAURANT, on_done=done)
        else:
            self.session.push(SILENCE)


@pytest.mark.parametrize("name", ["on_ready", "on_frame", "on_end", "on_done"])
def test_a_callback_that_never_returns_loses_its_own_session_only(
    engine: Engine, gate: threading.Event, name: str
) -> None:
    expected = says(engine)
    before = engine.stats().stuck_callbacks
    neighbour = Call(engine, sampling=SamplingParams.greedy())
    assert neighbour.session.wait_ready(WAIT)
    with recorded() as log:
        stuck = Stuck(engine, gate, name)
        assert stuck.entered.wait(WAIT)
        user = conversation("friend").user_pcm[: 6 * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        assert [neighbour.answer(frame).text_token for frame in user] == expected
    assert stuck.session.closed
    assert engine.stats().stuck_callbacks == before + 1
    assert any("has not returned" in line for line in log.of_session(stuck.session.id))
    with pytest.raises(SessionFailed, match=f"{name} callback has not returned"):
        stuck.session.push(SILENCE)
    assert engine.stats().sessions == 1  # its slot is free
    gate.set()  # the callback returns after all: the end is reported then, and only then
    assert stuck.session.wait_ended(WAIT)
    if name != "on_end":
        assert isinstance(stuck.ends.get(timeout=WAIT), SessionFailed)
    require_one_model_thread()
    assert neighbour.answer().index == 6
    neighbour.hang_up()


def require_one_model_thread() -> None:
    """A thread whose callback returns late must end: another one steps the engine now."""
    deadline = time.monotonic() + WAIT
    while [t.name for t in threading.enumerate()].count("personaplex-engine") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_late_on_done_ends_its_thread_although_another_callback_raises(
    engine: Engine, gate: threading.Event
) -> None:
    entered = threading.Event()

    def wait(*_: object) -> None:
        entered.set()
        assert gate.wait(WAIT)

    def bad(*_: object) -> None:
        raise ValueError("bad callback")

    call = Call(engine)
    assert call.session.wait_ready(WAIT)
    neighbour = Call(engine)
    assert neighbour.session.wait_ready(WAIT)
    call.session.say("One.", on_done=wait)
    call.session.say("Two.", on_done=bad)
    call.session.update_prompt(RESTAURANT, on_done=bad)
    call.session.close()  # every on_done and on_end are due at once
    assert entered.wait(WAIT)
    assert neighbour.answer().index == 0
    gate.set()
    assert call.session.wait_ended(WAIT)
    require_one_model_thread()
    neighbour.hang_up()


def test_frames_of_the_same_step_reach_the_other_sessions(
    engine: Engine, gate: threading.Event
) -> None:
    """The blocked callback belongs to the first session of a batch; the others are delivered."""
    entered, wait = waiting(gate)
    first = Call(engine, on_frame=wait)
    others = [Call(engine) for _ in range(3)]
    for call in (first, *others):
        assert call.session.wait_ready(WAIT)
    for call in (first, *others):
        call.session.push(np.zeros(4 * FRAME_SAMPLES, dtype=np.float32))
    assert entered.wait(WAIT)
    for call in others:
        assert [call.frames.get(timeout=WAIT).index for _ in range(4)] == [0, 1, 2, 3]
        call.hang_up()


def test_a_session_that_opens_while_two_callbacks_of_one_step_block(
    engine: Engine, gate: threading.Event
) -> None:
    entered, wait = waiting(gate)
    blocked = [Call(engine, on_frame=wait) for _ in range(2)]
    for call in blocked:
        assert call.session.wait_ready(WAIT)
    for call in blocked:
        call.session.push(SILENCE)
    assert entered.wait(WAIT)
    newcomer = Call(engine)
    assert newcomer.session.wait_ready(WAIT)
    assert newcomer.answer().index == 0
    newcomer.hang_up()


def test_stop_returns_although_a_callback_does_not(
    loaded_engine: Engine, gate: threading.Event
) -> None:
    with loaded_engine as engine:
        neighbour = Call(engine)
        stuck = Stuck(engine, gate, "on_frame")
        assert stuck.entered.wait(WAIT)
    assert neighbour.session.wait_ended(WAIT)
    assert not loaded_engine.stats().sessions
    with loaded_engine as engine:
        assert says(engine)


def test_an_engine_whose_callbacks_all_block_fails(gate: threading.Event) -> None:
    engine = Engine.load(CHECKPOINT, EngineConfig(device="cpu", dtype="float32", max_sessions=2))
    with engine:
        neighbour = Call(engine)
        for _ in range(9):
            assert engine.healthy
            assert Stuck(engine, gate, "on_frame").entered.wait(WAIT)
            deadline = time.monotonic() + WAIT
            while engine.stats().sessions > 1 and engine.healthy:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert isinstance(neighbour.ends.get(timeout=WAIT), EngineFailed)
        assert not engine.healthy


def test_a_slow_callback_is_counted_and_reported_with_its_session(engine: Engine) -> None:
    before = engine.stats()
    answered = threading.Semaphore(0)

    def slow(frame: object) -> None:
        time.sleep(0.1)
        answered.release()

    with recorded() as log:
        call = Call(engine, on_frame=slow)
        call.session.push(np.zeros(2 * FRAME_SAMPLES, dtype=np.float32))
        assert answered.acquire(timeout=WAIT) and answered.acquire(timeout=WAIT)
        call.hang_up()
    stats = engine.stats()
    assert stats.slow_callbacks == before.slow_callbacks + 2
    assert stats.stuck_callbacks == before.stuck_callbacks
    [line] = [line for line in log.of_session(call.session.id) if "delayed every caller" in line]
    assert "on_frame callback took 1" in line


def test_putting_into_a_simple_queue_is_never_slow(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may stop the thread in it for a while; ``converse`` uses it for files."""
    before = engine.stats()
    frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with recorded() as log:
        session = tracked(engine.open_session(FRIEND, on_frame=frames.put, on_end=frames.put))
        monkeypatch.setattr("pipecat_personaplex.callbacks.FRAME_SECONDS", -1.0)
        session.push(SILENCE)
        frames.get(timeout=WAIT)
        session.close()
        assert frames.get(timeout=WAIT) is None
    assert engine.stats().slow_callbacks == before.slow_callbacks
    assert "delayed every caller" not in str(log.of_session(session.id))
