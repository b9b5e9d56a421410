"""Failing callbacks and devices, too many sessions, starting and stopping."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from loguru import logger

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams, SessionFrame
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    EngineStopped,
    PersonaPlexError,
    SessionFailed,
)
from pipecat_personaplex.models.lm import PersonaPlexLM
from tests.golden_data import CHECKPOINT, FRIEND
from tests.helpers.calls import SILENCE, WAIT, Call, says

if TYPE_CHECKING:
    from loguru import Message


def test_a_failing_readiness_callback_ends_its_session(engine: Engine) -> None:
    neighbour = Call(engine)
    call = Call(engine, on_ready=lambda: 1 / 0)
    error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed)
    assert "on_ready callback raised ZeroDivisionError" in str(error)
    assert neighbour.answer().index == 0
    neighbour.hang_up()


def test_steps_are_counted_by_their_duration(engine: Engine) -> None:
    before = engine.stats()
    says(engine)
    after = engine.stats()
    counted = sum(after.step_histogram) - sum(before.step_histogram)
    assert counted == after.steps - before.steps == 6
    assert len(after.step_histogram) == len(STEP_BOUNDS_MS) + 1
    assert after.step_seconds_total > before.step_seconds_total
    assert 0 < after.step_p50_ms <= after.step_p99_ms


def test_a_callback_that_raises_ends_its_own_session_only(engine: Engine) -> None:
    other = Call(engine)

    def broken(frame: SessionFrame) -> None:
        raise ZeroDivisionError("no such thing")

    call = Call(engine, on_frame=broken)
    call.session.push(SILENCE)
    error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed)
    assert "on_frame callback raised ZeroDivisionError: no such thing" in str(error)
    with pytest.raises(SessionFailed, match="ZeroDivisionError"):
        call.session.push(SILENCE)
    with pytest.raises(SessionFailed, match="ZeroDivisionError"):
        call.session.wait_ready(WAIT)
    assert other.answer().index == 0
    assert engine.healthy
    other.hang_up()


def test_log_lines_of_a_session_are_bound_to_its_id(engine: Engine) -> None:
    lines: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def sink(message: Message) -> None:
        record = message.record
        if record["name"] == "pipecat_personaplex.engine.step_loop":
            lines[record["extra"]["session"]].append((record["level"].name, record["message"]))

    handler = logger.add(sink, level="DEBUG")
    try:
        calls = [Call(engine), Call(engine), Call(engine, on_frame=lambda frame: 1 / 0)]
        calls[-1].session.push(SILENCE)
        assert isinstance(calls[-1].ends.get(timeout=WAIT), SessionFailed)
        for call in calls[:-1]:
            call.answer()
            call.hang_up()
    finally:
        logger.remove(handler)

    assert lines.keys() == {call.session.id for call in calls}
    for call in calls:
        opened, too_long, ready, ended = lines[call.session.id]
        assert "does not fit into the context" in too_long[1]  # of the golden checkpoint
        assert opened[0] == ready[0] == "DEBUG"
        assert opened[1].startswith("session opened: voice NATM1, prompt of ")
        assert ready[1].startswith("session ready in slot ")
        if call is calls[-1]:
            assert ended == (
                "WARNING",
                "session ended with an error: the session's on_frame callback raised "
                "ZeroDivisionError: division by zero",
            )
        else:
            assert ended[0] == "DEBUG"
            assert ended[1].startswith("session closed after 1 frames, ")


def test_an_end_callback_that_raises_affects_no_session(engine: Engine) -> None:
    def broken(error: PersonaPlexError | None) -> None:
        raise RuntimeError("in on_end")

    session = engine.open_session(FRIEND, on_frame=lambda frame: None, on_end=broken)
    session.close()
    assert session.wait_ended(WAIT)
    assert len(says(engine)) == 6


def test_a_full_engine_refuses_at_once_and_a_closed_session_makes_room(engine: Engine) -> None:
    calls = [Call(engine) for _ in range(engine.config.max_sessions)]
    refused = engine.stats().refused
    with pytest.raises(EngineFull, match="all 4 sessions are taken"):
        Call(engine)
    assert engine.stats().refused == refused + 1
    for _ in range(20):
        calls.pop(0).session.close()
        calls.append(Call(engine))
    assert all(call.answer().index == 0 for call in calls)
    for call in calls:
        call.hang_up()
    assert engine.stats().sessions == 0


def test_closing_is_idempotent_and_ends_the_callbacks(engine: Engine) -> None:
    call = Call(engine)
    call.answer()
    for _ in range(3):
        call.hang_up()
    with pytest.raises(SessionFailed, match="the session is closed"):
        call.session.push(SILENCE)
    assert not call.session.wait_ready(0)
    assert call.ends.qsize() == 1


def test_a_stopped_engine_ends_its_sessions_and_can_start_again(loaded_engine: Engine) -> None:
    with pytest.raises(EngineStopped, match="the engine is not running"):
        Call(loaded_engine)
    with loaded_engine:
        call = Call(loaded_engine)
        call.answer()
    assert isinstance(call.ends.get(timeout=WAIT), EngineStopped)
    loaded_engine.stop()
    with loaded_engine:
        assert len(says(loaded_engine)) == 6


def test_a_failing_device_fails_every_session_with_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine.load(CHECKPOINT, EngineConfig(device="cpu", max_sessions=2))
    with engine:
        calls = [Call(engine), Call(engine)]
        for call in calls:
            call.answer()

        def fail(*args: object) -> None:
            raise RuntimeError("device-side assert triggered")

        monkeypatch.setattr(ModelRunner, "step", fail)
        calls[0].session.push(SILENCE)
        for call in calls:
            error = call.ends.get(timeout=WAIT)
            assert isinstance(error, EngineFailed)
            assert "RuntimeError: device-side assert triggered" in str(error)
        assert not engine.healthy
        assert engine.stats().sessions == 0
        with pytest.raises(EngineFailed):
            Call(engine)
    with pytest.raises(EngineFailed):
        engine.start()


def test_a_failing_prompt_fails_its_own_session_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Call(engine)
    other.answer()

    def fail(*args: object) -> None:
        raise MemoryError("no room for the prompt")

    with monkeypatch.context() as patch:
        patch.setattr("pipecat_personaplex.engine.pending.Prefill.advance", fail)
        call = Call(engine, Persona(voice="NATF2", text_prompt="A prompt that is not cached."))
        error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed)
    assert "MemoryError: no room for the prompt" in str(error)
    assert other.answer().index == 1
    other.hang_up()


def test_a_cancelled_callback_ends_its_own_session_only(engine: Engine) -> None:
    other = Call(engine)

    def cancelled(frame: SessionFrame) -> None:
        raise asyncio.CancelledError

    call = Call(engine, on_frame=cancelled)
    with pytest.raises(ConfigError, match="SamplingParams, not dict"):
        call.session.update({"seed": 1})  # type: ignore[arg-type]
    call.session.update(SamplingParams(top_k_text=1_000_000, top_k_audio=1_000_000))
    call.session.push(SILENCE)
    assert isinstance(call.ends.get(timeout=WAIT), SessionFailed)
    with pytest.raises(SessionFailed, match="CancelledError"):
        call.session.say("anything")
    assert other.answer().index == 0
    other.hang_up()


def test_raising_an_error_again_does_not_grow_its_traceback(engine: Engine) -> None:
    def broken(frame: SessionFrame) -> None:
        raise ValueError

    call = Call(engine, on_frame=broken)
    call.session.push(SILENCE)
    call.ends.get(timeout=WAIT)
    depths = []
    for _ in range(3):
        with pytest.raises(SessionFailed) as raised:
            call.session.push(SILENCE)
        depths.append(len(raised.traceback))
    assert len(set(depths)) == 1


def test_a_state_that_is_not_finite_ends_its_session_and_leaves_no_trace(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = says(engine)
    embed = PersonaPlexLM.embed

    def poisoned(lm: PersonaPlexLM, tokens: torch.Tensor) -> torch.Tensor:
        x = embed(lm, tokens)
        x[-1] = torch.nan
        return x

    call = Call(engine)
    call.answer()
    with monkeypatch.context() as patch:
        patch.setattr(PersonaPlexLM, "embed", poisoned)
        call.session.push(SILENCE)
        error = call.ends.get(timeout=WAIT)
        assert isinstance(error, SessionFailed)
        assert "no longer finite" in str(error)
        fresh = Call(
            engine, Persona(voice="NATF2", text_prompt="Another prompt that is not cached.")
        )
        error = fresh.ends.get(timeout=WAIT)
        assert "the prompt's state is not finite" in str(error)
    assert says(engine) == expected


def test_a_cached_prompt_goes_before_one_that_must_be_computed(engine: Engine) -> None:
    says(engine)
    order: queue.Queue[str] = queue.Queue()
    slow = Persona(voice="NATF2", text_prompt="A good conversation takes its time. " * 40)
    calls = [
        Call(engine, slow, on_frame=lambda frame: order.put("slow")),
        Call(engine, FRIEND, on_frame=lambda frame: order.put("cached")),
    ]
    for call in calls:
        call.session.push(SILENCE)
    assert [order.get(timeout=WAIT), order.get(timeout=WAIT)] == ["cached", "slow"]
    for call in calls:
        call.hang_up()


def test_an_engine_can_be_stopped_from_a_callback_and_started_again(
    loaded_engine: Engine,
) -> None:
    with loaded_engine:
        call = Call(loaded_engine, on_frame=lambda frame: loaded_engine.stop())
        call.session.push(SILENCE)
        assert isinstance(call.ends.get(timeout=WAIT), EngineStopped)
        loaded_engine.start()
        assert len(says(loaded_engine)) == 6


def test_starting_from_a_callback_does_nothing(loaded_engine: Engine) -> None:
    with loaded_engine:
        frames: queue.Queue[SessionFrame] = queue.Queue()

        def take(frame: SessionFrame) -> None:
            loaded_engine.start()
            frames.put(frame)

        call = Call(loaded_engine, on_frame=take)
        call.session.push(SILENCE)
        assert frames.get(timeout=WAIT).index == 0
        call.hang_up()


def test_start_and_stop_from_many_threads_leave_one_engine(loaded_engine: Engine) -> None:
    def model_threads() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "personaplex-engine"}

    def toggle() -> None:
        for _ in range(5):
            loaded_engine.start()
            loaded_engine.stop()

    before = model_threads()  # of other tests' engines
    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads)
    assert model_threads() <= before
    with loaded_engine:
        assert len(says(loaded_engine)) == 6


def test_configuration_is_validated_when_constructed() -> None:
    good = EngineConfig(device="cpu")
    for wrong in (
        {"max_sessions": -1},
        {"max_sessions": True},
        {"dtype": "float16"},
        {"quantization": "int3"},
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "auto:1"},
        {"device": None},
        {"prefix_cache_bytes": -1},
    ):
        with pytest.raises(ConfigError):
            replace(good, **wrong)  # type: ignore[arg-type]
    for bad in (
        {"seed": -1},
        {"seed": 1 << 63},
        {"temperature_audio": float("nan")},
        {"temperature_text": -0.1},
        {"temperature_text": "hot"},
        {"top_k_audio": 0},
        {"top_k_text": 2.5},
        {"top_k_text": 1 << 70},
    ):
        with pytest.raises(ConfigError):
            SamplingParams(**bad)  # type: ignore[arg-type]


def test_the_package_loads_lazily() -> None:
    code = (
        "import sys, pipecat_personaplex as p; "
        "assert 'torch' not in sys.modules and 'pipecat' not in sys.modules; "
        "p.Engine; assert 'torch' in sys.modules and 'pipecat' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
