"""Sessions under bad input, failing callbacks, a failing device, and too many callers."""

from __future__ import annotations

import asyncio
import gc
import queue
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams, Session, SessionFrame
from pipecat_personaplex.config import FRAME_SAMPLES, TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    EngineStopped,
    InvalidAudio,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    SpeechTooLong,
    VoiceNotFound,
)
from pipecat_personaplex.models.lm import PersonaPlexLM
from tests.golden_data import CHECKPOINT, FRIEND, conversation

SILENCE = np.zeros(FRAME_SAMPLES, dtype=np.float32)
WAIT = 30.0


class Call:
    """An open session whose frames and end can be waited for."""

    def __init__(self, engine: Engine, persona: Persona = FRIEND, **options: Any):
        self.frames: queue.Queue[SessionFrame] = queue.Queue()
        self.ends: queue.Queue[PersonaPlexError | None] = queue.Queue()
        options.setdefault("on_frame", self.frames.put)
        self.session: Session = engine.open_session(persona, on_end=self.ends.put, **options)

    def answer(self, pcm: np.ndarray = SILENCE) -> SessionFrame:
        self.session.push(pcm)
        return self.frames.get(timeout=WAIT)

    def hang_up(self) -> None:
        self.session.close()
        assert self.session.wait_ended(WAIT)


def says(engine: Engine) -> list[int]:
    """What a short greedy call says: a probe that the engine is as it should be."""
    pcm = conversation("friend").user_pcm[: 6 * FRAME_SAMPLES]
    return [f.text_token for f in engine.converse(FRIEND, pcm, SamplingParams.greedy()).frames]


def test_frames_come_in_order_with_their_timings(engine: Engine) -> None:
    call = Call(engine)
    assert call.session.wait_ready(WAIT)
    frames = [call.answer() for _ in range(5)]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert all(frame.pcm.shape == (FRAME_SAMPLES,) for frame in frames)
    assert all(frame.pcm.dtype == np.float32 for frame in frames)
    assert all(0 <= frame.timings.total_ms < WAIT * 1e3 for frame in frames)
    assert call.session.stats().frames == 5
    call.hang_up()
    assert call.ends.get(timeout=WAIT) is None


def test_readiness_is_reported_once_before_the_first_frame(engine: Engine) -> None:
    reports: queue.Queue[object] = queue.Queue()
    call = Call(engine, on_ready=lambda: reports.put("ready"), on_frame=reports.put)
    call.session.push(np.zeros(2 * FRAME_SAMPLES, dtype=np.float32))
    first, *frames = (reports.get(timeout=WAIT) for _ in range(3))
    assert first == "ready"
    assert [frame.index for frame in frames if isinstance(frame, SessionFrame)] == [0, 1]
    call.hang_up()
    assert reports.empty()


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


def test_audio_of_any_length_becomes_the_same_frames(engine: Engine) -> None:
    pcm = conversation("friend").user_pcm[: 6 * FRAME_SAMPLES]
    whole = Call(engine, sampling=SamplingParams.greedy())
    expected = [whole.answer(frame).text_token for frame in pcm.reshape(-1, FRAME_SAMPLES)]
    whole.hang_up()
    pieces = Call(engine, sampling=SamplingParams.greedy())
    for piece in np.split(pcm, [1, 1, 480, 2000, 3839, 3840, 9000]):
        pieces.session.push(piece)
    assert [pieces.frames.get(timeout=WAIT).text_token for _ in range(6)] == expected
    pieces.hang_up()


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.full(FRAME_SAMPLES, np.nan, dtype=np.float32), "1920 of 1920 samples are NaN"),
        (np.array([0.0, np.inf], dtype=np.float32), "1 of 2 samples"),
        (np.zeros(FRAME_SAMPLES, dtype=np.int16), "not int16"),
        (np.zeros(FRAME_SAMPLES), "not float64"),
        (np.zeros((2, FRAME_SAMPLES), dtype=np.float32), r"\[2, 1920\]"),
        ([0.0] * FRAME_SAMPLES, "not list"),
        (b"\0" * 3840, "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_bad_audio_is_refused_and_the_session_goes_on(
    engine: Engine, pcm: Any, message: str
) -> None:
    expected = says(engine)
    call = Call(engine, sampling=SamplingParams.greedy())
    user = conversation("friend").user_pcm.reshape(-1, FRAME_SAMPLES)
    said = []
    for frame in user[:6]:
        with pytest.raises(InvalidAudio, match=message):
            call.session.push(pcm)
        said.append(call.answer(frame).text_token)
    assert said == expected
    call.hang_up()


any_samples = st.lists(
    st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=8
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pushes=st.lists(any_samples, min_size=4, max_size=4))
def test_hostile_samples_never_reach_a_neighbour(engine: Engine, pushes: list[list[float]]) -> None:
    neighbour, hostile = Call(engine, sampling=SamplingParams.greedy()), Call(engine)
    user = conversation("friend").user_pcm.reshape(-1, FRAME_SAMPLES)
    try:
        said = []
        for samples, frame in zip(pushes, user, strict=False):
            pcm = np.resize(np.array(samples, dtype=np.float32), FRAME_SAMPLES)
            if np.isfinite(pcm).all():
                assert np.isfinite(hostile.answer(pcm).pcm).all()
            else:
                with pytest.raises(InvalidAudio):
                    hostile.session.push(pcm)
            said.append(neighbour.answer(frame).text_token)
    finally:
        neighbour.hang_up()
        hostile.hang_up()
    assert said == says(engine)[:4]


def test_an_empty_push_is_nothing(engine: Engine) -> None:
    call = Call(engine)
    call.session.push(np.zeros(0, dtype=np.float32))
    assert call.session.stats().queued_frames == 0
    assert call.answer().index == 0
    call.hang_up()


def test_ten_seconds_at_once_keep_the_newest_frames() -> None:
    config = EngineConfig(device="cpu", max_sessions=1, max_queued_frames=10)
    engine = Engine.load(CHECKPOINT, config)
    with engine:
        gate = threading.Event()
        answered = threading.Semaphore(0)

        def slow(frame: SessionFrame) -> None:
            assert gate.wait(WAIT)
            answered.release()

        call = Call(engine, on_frame=slow)
        assert call.session.wait_ready(WAIT)
        call.session.push(np.zeros(240_000, dtype=np.float32))
        stats = call.session.stats()
        # 125 frames came; ten may wait, and the model thread may have taken some meanwhile.
        assert stats.queued_frames <= 10
        assert stats.dropped_frames >= 125 - 10 - 2
        gate.set()
        for _ in range(125 - stats.dropped_frames):
            assert answered.acquire(timeout=WAIT)
        assert call.session.stats().frames == 125 - call.session.stats().dropped_frames
        call.hang_up()


def test_a_caller_who_never_pushes_holds_nobody_up(engine: Engine) -> None:
    silent = Call(engine)
    assert silent.session.wait_ready(WAIT)
    assert says(engine) == says(engine)
    assert silent.frames.empty()
    silent.hang_up()


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


def test_an_end_callback_that_raises_harms_nobody(engine: Engine) -> None:
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


def test_bad_personas_are_refused_before_anything_is_taken(engine: Engine) -> None:
    with pytest.raises(VoiceNotFound, match=r"'NATX9' is unknown.*NATF2, NATM1"):
        Call(engine, Persona(voice="NATX9"))
    with pytest.raises(VoiceNotFound):
        Call(engine, Persona(voice="../../etc/passwd"))
    with pytest.raises(PromptTooLong, match=r"attends to 2999; shorten the text prompt by"):
        Call(engine, Persona(voice="NATF2", text_prompt="good conversation " * 4000))
    with pytest.raises(ConfigError, match="voice must be text"):
        Persona(voice=7)  # type: ignore[arg-type]
    assert engine.stats().sessions == 0


@pytest.mark.parametrize("wrong", ["NATF2", None, {"voice": "NATF2"}])
def test_what_is_no_persona_is_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"must be a Persona .*, not {type(wrong).__name__}"):
        Call(engine, wrong)
    assert engine.stats().sessions == 0


@pytest.mark.parametrize("wrong", [{"seed": 1}, {}, 0, "greedy", SamplingParams])
def test_what_is_no_sampling_is_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"must be SamplingParams, not {type(wrong).__name__}"):
        Call(engine, sampling=wrong)
    assert engine.stats().sessions == 0


def test_a_prompt_without_text_is_spoken_to_like_any_other(engine: Engine) -> None:
    call = Call(engine, Persona(voice="NATF2", text_prompt="  "))
    assert call.answer().index == 0
    call.hang_up()


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
        patch.setattr("pipecat_personaplex.engine.loop.Prefill.advance", fail)
        call = Call(engine, Persona(voice="NATF2", text_prompt="A prompt that nobody had before."))
        error = call.ends.get(timeout=WAIT)
    assert isinstance(error, SessionFailed)
    assert "MemoryError: no room for the prompt" in str(error)
    assert other.answer().index == 1
    other.hang_up()


def test_words_can_be_put_into_the_agents_mouth(engine: Engine) -> None:
    call = Call(engine, sampling=SamplingParams(seed=3))
    call.session.say("Hello there, welcome.")
    pieces = [call.answer().text for _ in range(40)]
    assert "Hello there, welcome." in "".join(pieces)
    call.hang_up()


def test_sampling_can_change_in_mid_call(engine: Engine) -> None:
    user = conversation("friend").user_pcm.reshape(-1, FRAME_SAMPLES)
    call = Call(engine, sampling=SamplingParams.greedy())
    greedy = [call.answer(frame).text_token for frame in user[:6]]
    assert greedy == says(engine)
    call.session.update(SamplingParams(seed=5, temperature_text=3.0, top_k_text=300))
    wild = {call.answer(user[6 + n]).text_token for n in range(12)}
    assert len(wild - {TEXT_EPAD, TEXT_PAD}) > 6
    call.hang_up()


def test_many_calls_leave_nothing_behind(engine: Engine) -> None:
    sessions = [weakref.ref(Call(engine).session) for _ in range(4)]
    for ref in sessions:
        session = ref()
        assert session is not None
        session.close()
        assert session.wait_ended(WAIT)
    del session
    for _ in range(20):
        says(engine)
    assert engine.stats().sessions == 0
    gc.collect()
    assert [ref() for ref in sessions] == [None] * 4


def test_callbacks_and_settings_of_any_kind_end_their_own_session_only(engine: Engine) -> None:
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


def test_speech_that_waits_is_bounded(engine: Engine) -> None:
    call = Call(engine)
    with pytest.raises(SpeechTooLong, match=r"1500 may wait; say less at once"):
        call.session.say("much too long a speech " * 200)
    call.session.say("Short.")
    assert call.answer().index == 0
    call.hang_up()
    with pytest.raises(SessionFailed, match="closed"):
        call.session.say("late")
    with pytest.raises(SessionFailed, match="closed"):
        call.session.update(SamplingParams())


def test_errors_raised_again_do_not_grow(engine: Engine) -> None:
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
        fresh = Call(engine, Persona(voice="NATF2", text_prompt="Nobody has had this prompt."))
        error = fresh.ends.get(timeout=WAIT)
        assert "the prompt's state is not finite" in str(error)
    assert says(engine) == expected


def test_a_kept_prompt_does_not_wait_for_another_to_be_computed(engine: Engine) -> None:
    says(engine)
    order: queue.Queue[str] = queue.Queue()
    slow = Persona(voice="NATF2", text_prompt="A good conversation takes its time. " * 40)
    calls = [
        Call(engine, slow, on_frame=lambda frame: order.put("slow")),
        Call(engine, FRIEND, on_frame=lambda frame: order.put("kept")),
    ]
    for call in calls:
        call.session.push(SILENCE)
    assert [order.get(timeout=WAIT), order.get(timeout=WAIT)] == ["kept", "slow"]
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


def test_starting_from_a_callback_changes_nothing(loaded_engine: Engine) -> None:
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
    def toggle() -> None:
        for _ in range(5):
            loaded_engine.start()
            loaded_engine.stop()

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.name == "personaplex-engine" for thread in threading.enumerate())
    with loaded_engine:
        assert len(says(loaded_engine)) == 6


def test_configuration_is_checked_where_it_is_made() -> None:
    good = EngineConfig(device="cpu")
    for wrong in (
        {"max_sessions": 0},
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
