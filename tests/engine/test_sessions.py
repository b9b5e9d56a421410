"""Valid and invalid input of a session: audio, personas and sampling parameters."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams, SessionFrame
from pipecat_personaplex.constants import FRAME_SAMPLES, TEXT_EPAD, TEXT_PAD
from pipecat_personaplex.errors import (
    ConfigError,
    InvalidAudio,
    PromptTooLong,
    SessionFailed,
    VoiceNotFound,
)
from tests.golden_data import CHECKPOINT, conversation
from tests.helpers.calls import WAIT, Call, says


def test_frames_are_delivered_in_order_with_timings(engine: Engine) -> None:
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
    tokens = []
    for frame in user[:6]:
        with pytest.raises(InvalidAudio, match=message):
            call.session.push(pcm)
        tokens.append(call.answer(frame).text_token)
    assert tokens == expected
    call.hang_up()


any_samples = st.lists(
    st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=8
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pushes=st.lists(any_samples, min_size=4, max_size=4))
def test_invalid_samples_never_affect_another_session(
    engine: Engine, pushes: list[list[float]]
) -> None:
    neighbour, hostile = Call(engine, sampling=SamplingParams.greedy()), Call(engine)
    user = conversation("friend").user_pcm.reshape(-1, FRAME_SAMPLES)
    try:
        tokens = []
        for samples, frame in zip(pushes, user, strict=False):
            pcm = np.resize(np.array(samples, dtype=np.float32), FRAME_SAMPLES)
            if np.isfinite(pcm).all():
                assert np.isfinite(hostile.answer(pcm).pcm).all()
            else:
                with pytest.raises(InvalidAudio):
                    hostile.session.push(pcm)
            tokens.append(neighbour.answer(frame).text_token)
    finally:
        neighbour.hang_up()
        hostile.hang_up()
    assert tokens == says(engine)[:4]


def test_an_empty_push_queues_no_frame(engine: Engine) -> None:
    call = Call(engine)
    call.session.push(np.zeros(0, dtype=np.float32))
    assert call.session.stats().queued_frames == 0
    assert call.answer().index == 0
    call.hang_up()


def test_a_full_queue_drops_the_oldest_frames() -> None:
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
        # 125 frames were pushed. Ten may wait; the model thread may have taken up to two.
        assert stats.queued_frames <= 10
        assert stats.dropped_frames >= 125 - 10 - 2
        gate.set()
        for _ in range(125 - stats.dropped_frames):
            assert answered.acquire(timeout=WAIT)
        assert call.session.stats().frames == 125 - call.session.stats().dropped_frames
        call.hang_up()


def test_a_silent_session_delays_no_other(engine: Engine) -> None:
    silent = Call(engine)
    assert silent.session.wait_ready(WAIT)
    assert says(engine) == says(engine)
    assert silent.frames.empty()
    silent.hang_up()


def test_an_invalid_persona_takes_no_slot(engine: Engine) -> None:
    with pytest.raises(VoiceNotFound, match=r"'NATX9' is unknown.*NATF2, NATM1"):
        Call(engine, Persona(voice="NATX9"))
    with pytest.raises(VoiceNotFound):
        Call(engine, Persona(voice="../../etc/passwd"))
    with pytest.raises(PromptTooLong, match="at most 2999 are accepted; shorten the text"):
        Call(engine, Persona(voice="NATF2", text_prompt="good conversation " * 4000))
    with pytest.raises(ConfigError, match="voice must be text"):
        Persona(voice=7)  # type: ignore[arg-type]
    assert engine.stats().sessions == 0


@pytest.mark.parametrize("wrong", ["NATF2", None, {"voice": "NATF2"}])
def test_a_persona_of_another_type_is_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"must be a Persona .*, not {type(wrong).__name__}"):
        Call(engine, wrong)
    assert engine.stats().sessions == 0


@pytest.mark.parametrize("wrong", [{"seed": 1}, {}, 0, "greedy", SamplingParams])
def test_sampling_of_another_type_is_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"must be SamplingParams, not {type(wrong).__name__}"):
        Call(engine, sampling=wrong)
    assert engine.stats().sessions == 0


def test_a_prompt_may_have_no_text(engine: Engine) -> None:
    call = Call(engine, Persona(voice="NATF2", text_prompt="  "))
    assert call.answer().index == 0
    call.hang_up()


def test_sampling_can_change_during_a_session(engine: Engine) -> None:
    user = conversation("friend").user_pcm.reshape(-1, FRAME_SAMPLES)
    call = Call(engine, sampling=SamplingParams.greedy())
    greedy = [call.answer(frame).text_token for frame in user[:6]]
    assert greedy == says(engine)
    call.session.update(SamplingParams(seed=5, temperature_text=3.0, top_k_text=300))
    wild = {call.answer(user[6 + n]).text_token for n in range(12)}
    assert len(wild - {TEXT_EPAD, TEXT_PAD}) > 6
    call.hang_up()


def test_a_tiny_temperature_is_greedy_and_ends_no_call(engine: Engine) -> None:
    greedy, neighbour = Call(engine, sampling=SamplingParams.greedy()), Call(engine)
    call = Call(engine, sampling=SamplingParams(temperature_text=5e-324, temperature_audio=1e-40))
    for index in range(4):
        if index == 2:
            call.session.update(SamplingParams(temperature_text=1e-40, temperature_audio=1e-300))
        assert call.answer().text_token == greedy.answer().text_token
        assert neighbour.answer().index == index
    for each in (call, greedy, neighbour):
        each.hang_up()


def test_a_closed_session_refuses_new_sampling(engine: Engine) -> None:
    call = Call(engine)
    call.hang_up()
    with pytest.raises(SessionFailed, match="closed"):
        call.session.update(SamplingParams())
