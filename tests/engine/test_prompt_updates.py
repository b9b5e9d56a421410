"""A new prompt for a running session: correct use, misuse, and what the other sessions see."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.engine import memory_plan
from pipecat_personaplex.engine.replay import Replay
from pipecat_personaplex.errors import (
    ConfigError,
    EngineError,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    VoiceNotFound,
)
from tests.helpers.calls import WAIT, Call, tokens, tracked
from tests.helpers.questions import question_and_pause

WAITER = Persona("NATF2", RESTAURANT)
TEACHER = Persona("NATM1", "You are a wise and friendly teacher.")
USER = question_and_pause(60)
SAMPLED = SamplingParams(seed=5)


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    config = EngineConfig(device="cpu", dtype="float32", max_sessions=4, prefill_chunk=64)
    with Engine.load("nano", config) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(nano: Engine) -> list[list[int]]:
    """Tokens of WAITER with USER, undisturbed."""
    result = nano.converse(WAITER, USER.reshape(-1), SAMPLED)
    return [tokens(frame) for frame in result.frames]


class Updated(Call):
    """A call whose prompt updates report to a queue."""

    def __init__(self, engine: Engine, persona: Persona = WAITER, **options: Any):
        self.done: queue.Queue[PersonaPlexError | None] = queue.Queue()
        options.setdefault("sampling", SAMPLED)
        super().__init__(engine, persona, **options)

    def update(self, persona: Persona, **options: Any) -> None:
        self.session.update_prompt(persona, on_done=self.done.put, **options)

    def result(self) -> PersonaPlexError | None:
        return self.done.get(timeout=WAIT)


@contextmanager
def stopped_thread(engine: Engine) -> Iterator[None]:
    """Hold the model thread in the callback of another session."""
    entered, gate = threading.Event(), threading.Event()

    def wait(frame: object) -> None:
        entered.set()
        assert gate.wait(WAIT)

    call = Call(engine, on_frame=wait)
    call.session.push(USER[0])
    assert entered.wait(WAIT)
    try:
        yield
    finally:
        gate.set()
        call.hang_up()


def test_the_same_prompt_changes_no_token_of_the_call_or_its_neighbour(
    nano: Engine, expected: list[list[int]]
) -> None:
    call, neighbour = Updated(nano), Call(nano, sampling=SAMPLED)
    alone = [
        tokens(f)
        for f in nano.converse(neighbour.session.persona, USER.reshape(-1), SAMPLED).frames
    ]
    swaps = 0
    for index, pcm in enumerate(USER):
        call.session.push(pcm)
        neighbour.session.push(pcm)
        if index in (0, 17, 34, 48):
            call.update(WAITER)
        assert tokens(call.frames.get(timeout=WAIT)) == expected[index]
        assert tokens(neighbour.frames.get(timeout=WAIT)) == alone[index]
        if index in (12, 30, 46, 59):  # between them the replay runs beside the steps
            assert call.result() is None
            swaps += 1
    assert swaps == 4 and nano._loop.counters.replays >= 4
    call.hang_up()
    neighbour.hang_up()


def test_a_new_prompt_takes_effect_without_a_gap(nano: Engine, expected: list[list[int]]) -> None:
    call = Updated(nano)
    said = [call.answer(pcm) for pcm in USER[:20]]
    call.update(TEACHER)
    assert call.result() is None
    assert call.session.persona == TEACHER
    said += [call.answer(pcm) for pcm in USER[20:50]]
    assert [frame.index for frame in said] == list(range(50))
    assert [tokens(frame) for frame in said[:20]] == expected[:20]
    assert [tokens(frame) for frame in said[20:]] != expected[20:50]
    # What the caller says is encoded by a codec that has not been touched.
    assert [tokens(frame)[9:] for frame in said] == [row[9:] for row in expected[:50]]
    call.hang_up()


def test_how_much_is_remembered(nano: Engine) -> None:
    call = Updated(nano)
    for pcm in USER[:30]:
        call.answer(pcm)
    runner = nano._loop._runner
    slot = next(s for s, live in nano._loop._live.items() if live is call.session)
    for history, remembered in ((None, 30), (7, 7), (0, 0), (10**6, 30)):
        call.update(TEACHER, history=history)
        assert call.result() is None
        assert runner.position(slot) == nano._build_prompt(TEACHER).frames + remembered
    assert call.answer(USER[30]).index == 30
    call.hang_up()


@pytest.mark.parametrize("wrong", [None, "NATF2", 5, {"voice": "NATF2"}])
def test_what_is_not_a_persona_is_refused(nano: Engine, wrong: Any) -> None:
    call = Updated(nano)
    with pytest.raises(ConfigError, match=f"must be a Persona .*, not {type(wrong).__name__}"):
        call.update(wrong)
    call.hang_up()


@pytest.mark.parametrize("history", [-1, 1.5, True, "all"])
def test_an_invalid_number_of_frames_is_refused(nano: Engine, history: Any) -> None:
    call = Updated(nano)
    with pytest.raises(ConfigError, match="history must be a number of frames"):
        call.update(TEACHER, history=history)
    call.hang_up()


def test_a_persona_that_cannot_be_used_is_refused_at_once(
    nano: Engine, expected: list[list[int]]
) -> None:
    call = Updated(nano)
    said = [tokens(call.answer(pcm)) for pcm in USER[:5]]
    with pytest.raises(PromptTooLong):
        call.update(Persona("NATF2", "good conversation " * 4000))
    with pytest.raises(VoiceNotFound):
        call.update(Persona("NATX9"))
    with pytest.raises(ConfigError, match="text_prompt is not valid text: character 3"):
        call.update(Persona("NATF2", "Hi \ud800"))
    said += [tokens(call.answer(pcm)) for pcm in USER[5:10]]
    assert said == expected[:10]
    call.hang_up()
    assert call.done.empty()
    with pytest.raises(SessionFailed):
        call.update(TEACHER)


def test_a_pending_session_takes_its_new_prompt_once_it_is_ready(nano: Engine) -> None:
    events: queue.Queue[str] = queue.Queue()
    call = Call(nano, on_ready=lambda: events.put("ready"))
    call.session.update_prompt(TEACHER, on_done=lambda error: events.put(f"done {error}"))
    assert [events.get(timeout=WAIT) for _ in range(2)] == ["ready", "done None"]
    assert call.session.persona == TEACHER
    assert call.answer().index == 0
    call.hang_up()


def test_a_later_prompt_replaces_one_that_has_not_finished(nano: Engine) -> None:
    call = Updated(nano)
    assert call.session.wait_ready(WAIT)
    with stopped_thread(nano):
        for number in range(5):
            call.update(Persona("NATF2", f"Number {number}."))
    errors = [call.result() for _ in range(5)]
    assert all(isinstance(e, EngineError) and "replaced" in str(e) for e in errors[:-1])
    assert errors[-1] is None
    assert call.session.persona.text_prompt == "Number 4."
    call.hang_up()
    assert call.done.empty()


def test_a_session_with_requests_without_end_delays_nobody(nano: Engine) -> None:
    busy, other = Updated(nano), Updated(nano)
    for call in (busy, other):
        assert call.session.wait_ready(WAIT)
    other.update(TEACHER)
    results: list[PersonaPlexError | None] = []
    for number in range(1000):
        busy.update(Persona("NATF2", f"Number {number}. " + 60 * "Be kind. "))
        time.sleep(0.001)  # a replay takes much longer
        if not other.done.empty() and busy.done.qsize() > 100:
            break
    assert other.result() is None
    while not busy.done.empty():
        results.append(busy.result())
    assert None in results, "new prompts take effect meanwhile"
    for call in (busy, other):
        call.hang_up()


def test_a_session_that_ends_reports_its_prompts_before_its_end(nano: Engine) -> None:
    events: queue.Queue[tuple[str, Any]] = queue.Queue()
    opened = nano.open_session(
        WAITER,
        on_frame=lambda frame: None,
        on_end=lambda error: events.put(("end", error)),
    )
    session = tracked(opened)
    assert session.wait_ready(WAIT)
    with stopped_thread(nano):
        for _ in range(2):
            session.update_prompt(TEACHER, on_done=lambda error: events.put(("done", error)))
        session.close()
    assert session.wait_ended(WAIT)
    kinds = [events.get(timeout=WAIT) for _ in range(3)]
    assert [kind for kind, _ in kinds] == ["done", "done", "end"]
    assert all(isinstance(error, SessionFailed) for kind, error in kinds if kind == "done")


def test_a_callback_that_raises_ends_its_own_session(nano: Engine) -> None:
    call, neighbour = Call(nano), Call(nano)

    def bad(error: object) -> None:
        raise ValueError("bad callback")

    call.session.update_prompt(TEACHER, on_done=bad)
    error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed) and "on_done callback raised ValueError" in str(error)
    assert neighbour.answer().index == 0
    neighbour.hang_up()


@pytest.mark.parametrize("raised", [RuntimeError("broken"), MemoryError()])
def test_a_replay_that_fails_leaves_the_old_prompt(
    nano: Engine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(self: Replay, chunk: int) -> None:
        raise raised

    call = Updated(nano)
    said = [tokens(call.answer(pcm)) for pcm in USER[:10]]
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "advance", fail)
        call.update(TEACHER)
        error = call.result()
    assert isinstance(error, EngineError) and "could not be computed" in str(error)
    assert call.session.persona == WAITER
    said += [tokens(call.answer(pcm)) for pcm in USER[10:20]]
    assert said == expected[:20]
    call.update(TEACHER)
    assert call.result() is None
    call.hang_up()


def test_too_little_memory_refuses_with_the_arithmetic(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Updated(nano)
    with monkeypatch.context() as patch:
        patch.setattr(memory_plan, "available_bytes", lambda device: 1 << 20)
        call.update(TEACHER)
        error = call.result()
    assert isinstance(error, ConfigError)
    assert "keys and values of 511 frames 0.01 of 0.00 free" in str(error)
    assert call.answer().index == 0
    call.hang_up()


def test_a_call_that_outruns_its_replay_is_given_up(nano: Engine) -> None:
    call = Updated(nano)
    for pcm in USER[:10]:
        call.answer(pcm)
    past, prompt = call.session.past, nano._build_prompt(TEACHER)
    replay = Replay(nano._loop._runner, prompt, None, past, 5)
    assert replay.advance(16) is None
    replay._capacity = prompt.frames + 6
    call.answer(USER[10])
    assert replay.advance(16) is None
    call.answer(USER[11])
    with pytest.raises(EngineError, match="faster than its state"):
        replay.advance(16)
    call.hang_up()


def test_a_storm_of_updates_from_many_threads(nano: Engine, expected: list[list[int]]) -> None:
    stormy, neighbour = Updated(nano), Call(nano, WAITER, sampling=SAMPLED)
    accepted, stop = [], threading.Event()

    def storm(number: int) -> None:
        while not stop.is_set():
            try:
                stormy.update(Persona(("NATF2", "NATM1")[number % 2], f"Number {number}."))
            except SessionFailed:
                return
            accepted.append(number)
            stop.wait(0.01)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(16)]
    assert neighbour.session.wait_ready(WAIT) and stormy.session.wait_ready(WAIT)
    for thread in threads:
        thread.start()
    for index, pcm in enumerate(USER[:15]):
        stormy.session.push(pcm)
        assert tokens(neighbour.answer(pcm)) == expected[index]
    stormy.hang_up()
    stop.set()
    for thread in threads:
        thread.join(WAIT)
    results = [stormy.done.get(timeout=WAIT) for _ in accepted]
    assert len(results) == len(accepted) > 16
    assert stormy.done.empty()
    # The slot is free again, and nothing of the storm stays.
    assert tokens(neighbour.answer(USER[15])) == expected[15]
    neighbour.hang_up()
    assert nano.stats().sessions == 0
    assert nano._loop._replays._running is None


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    actions=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["update", "long", "voice", "say", "close", "open"]),
            st.integers(0, 40),
        ),
        max_size=12,
    )
)
def test_no_use_of_updates_changes_another_session(
    nano: Engine, expected: list[list[int]], actions: list[tuple[int, str, int]]
) -> None:
    neighbour, other = Call(nano, WAITER, sampling=SAMPLED), Updated(nano)
    requested = 0
    finished: queue.Queue[object] = queue.Queue()
    index = 0
    for frames, action, history in actions:
        for _ in range(frames):
            if not other.session.closed:
                other.session.push(USER[index % len(USER)])
            assert tokens(neighbour.answer(USER[index])) == expected[index]
            index += 1
        try:
            if action == "update":
                other.session.update_prompt(TEACHER, history=history, on_done=finished.put)
                requested += 1
            elif action == "long":
                other.update(Persona("NATF2", "a " * 9000))
            elif action == "voice":
                other.update(Persona("\0../"))
            elif action == "say":
                other.session.say("Hello there.")
            elif action == "close":
                other.session.close()
            elif other.session.closed:
                other = Updated(nano)
        except (PersonaPlexError, SessionFailed):
            pass
    other.hang_up()
    neighbour.hang_up()
    assert finished.qsize() == requested
    assert nano.stats().sessions == 0


def test_a_prompt_longer_than_the_window_can_be_replaced(engine: Engine) -> None:
    call = Updated(engine, Persona("NATF2", "Hello."))
    for pcm in USER[:50]:
        call.answer(pcm)
    call.update(Persona("NATM1", "Good conversation."))
    assert call.result() is None
    said = [call.answer(pcm) for pcm in USER[50:]]
    assert [frame.index for frame in said] == list(range(50, 60))
    call.hang_up()
