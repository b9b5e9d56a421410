"""A call on an engine whose sessions cannot change their persona: another session takes over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    PersonaPlexError,
    SessionFailed,
    VoiceNotFound,
)
from pipecat_personaplex.interface import ALL_FEATURES, SessionFrame
from pipecat_personaplex.service.call_events import (
    PersonaRejected,
    SessionEnded,
    SpeechEnded,
    SpeechRejected,
)
from pipecat_personaplex.service.speech import RequestedText
from tests.helpers.call_runs import ANNA, SAMPLING, CallRun, active_call, started
from tests.helpers.engines import FakeEngine, FakeSession

HAND_OVER = ALL_FEATURES - {"prompt"}

BERT, CLEO = (Persona("NATF2", name) for name in ("Bert", "Cleo"))


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(features=HAND_OVER) as engine:
        yield engine


def session_id(run: CallRun) -> str:
    assert run.call.session is not None
    return run.call.session.id


def ended(session: FakeSession, error: PersonaPlexError | None = None) -> SessionEnded:
    return SessionEnded(session.persona, session.id, error)


def text(words: str) -> RequestedText:
    return RequestedText(words, "pause", interruptible=True)


async def test_frames_come_back_in_order_until_the_call_is_closed(fake: FakeEngine):
    async with active_call(fake) as run:
        for index in range(3):
            run.push_frame()
            assert (await run.next_frame()).index == index
        run.push_frame()
        run.call.close()
        assert await run.rest() == [ended(fake.sessions[0])]


async def test_a_call_closed_while_its_session_is_pending_yields_no_events():
    with FakeEngine(ready=False) as fake:
        run = CallRun(fake)
        run.call.open(ANNA, SAMPLING)
        run.call.tick()
        run.call.close()
        assert await run.rest() == []
        run.call.open(BERT, SAMPLING)
        assert len(fake.sessions) == 1


async def test_persona_and_id_are_those_of_the_active_session(fake: FakeEngine):
    run = CallRun(fake)
    assert run.call.persona is run.call.session is run.call.sampling is None
    async with active_call(fake) as run:
        anna = fake.sessions[0]
        assert (run.call.persona, session_id(run)) == (ANNA, anna.id)
        fake.ready = False
        run.call.open(BERT, SAMPLING)
        bert = fake.sessions[1]
        assert (run.call.persona, session_id(run)) == (ANNA, anna.id)
        bert.make_ready()
        await run.until(started(bert))
        assert (run.call.persona, session_id(run)) == (BERT, bert.id)


async def test_a_second_persona_change_replaces_the_pending_session(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.ready = False
        run.call.open(BERT, SAMPLING)
        run.call.open(CLEO, SAMPLING)
        anna, bert, cleo = fake.sessions
        assert bert.closed and not anna.closed
        bert.make_ready()
        cleo.make_ready()
        run.call.tick()
        assert await run.next() == ended(anna)
        assert await run.next() == started(cleo)
        assert run.call.persona == CLEO
        run.push_frame()
        await run.next_frame()
        assert len(cleo.heard) == 1


async def test_a_second_persona_change_needs_no_third_slot():
    with FakeEngine(max_sessions=2, features=HAND_OVER) as fake:
        async with active_call(fake) as run:
            fake.ready = False
            run.call.open(BERT, SAMPLING)
            run.call.open(CLEO, SAMPLING)
            assert [s.persona for s in fake.open_sessions] == [ANNA, CLEO]


async def test_a_refused_persona_leaves_the_session_that_is_pending_on_a_full_engine():
    with FakeEngine(max_sessions=1, features=HAND_OVER) as fake:
        fake.ready = False
        run = CallRun(fake)
        run.call.open(ANNA, SAMPLING)
        with pytest.raises(VoiceNotFound):
            run.call.open(Persona("unknown-voice", "Bert"), SAMPLING)
        [session] = fake.open_sessions
        assert run.call.persona == ANNA
        session.make_ready()
        assert await run.next() == started(session)
        run.call.close()


async def test_a_full_engine_changes_nothing():
    with FakeEngine(max_sessions=1, features=HAND_OVER) as fake:
        async with active_call(fake) as run:
            with pytest.raises(EngineFull):
                run.call.open(BERT, SAMPLING)
            assert run.call.persona == ANNA
            run.push_frame()
            await run.next_frame()


async def test_two_persona_changes_in_a_row_leave_one_session(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.step.clear()
        run.push_frame()
        for persona in (BERT, CLEO):
            run.call.open(persona, SAMPLING)
            run.call.tick()
            await run.until(started(fake.sessions[-1]))
        assert [s.persona for s in fake.open_sessions] == [CLEO]
        fake.step.set()
        run.push_frame()
        await run.next_frame()
        ends = [e.persona for e in run.events if isinstance(e, SessionEnded)]
        assert ends == [ANNA, BERT]


async def test_an_engine_failure_ends_the_call_once_with_two_sessions_open(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.ready = False
        run.call.open(BERT, SAMPLING)
        error = EngineFailed("gone")
        fake.fail(error)
        event = await run.next()
        if isinstance(event, PersonaRejected):  # the two sessions end in either order
            event = await run.next()
        assert event == ended(fake.sessions[0], error)
        assert run.call.persona is None
        run.push_frame()
        run.call.tick()
        run.call.update(SAMPLING)
        run.call.close()
        assert await run.rest() == []


async def test_a_first_session_that_fails_while_pending_ends(fake: FakeEngine):
    fake.ready = False
    run = CallRun(fake)
    run.call.open(ANNA, SAMPLING)
    error = SessionFailed("out of memory")
    fake.sessions[0].fail(error)
    assert await run.next() == ended(fake.sessions[0], error)
    assert run.call.persona is None
    run.call.close()


async def test_a_call_may_be_opened_again_after_its_session_failed(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.sessions[0].fail(SessionFailed("NaN"))
        await run.next()
        run.now += 60
        run.call.open(BERT, SAMPLING)
        run.call.tick()
        assert await run.next() == started(fake.sessions[1])
        run.push_frame()
        await run.next_frame()
        # The minute without a session is not filled with silence.
        assert len(fake.sessions[1].heard) <= 3


async def test_texts_wait_for_an_active_session_and_rejected_texts_are_reported(fake: FakeEngine):
    run = CallRun(fake)
    run.call.speech.say(text("Hello."))
    run.call.speech.say(text(" "))
    run.call.open(ANNA, SAMPLING)
    session = fake.sessions[0]
    assert session.said == []
    run.call.tick()
    assert await run.next() == started(session)
    rejected = await run.next()
    assert isinstance(rejected, SpeechRejected)
    assert (rejected.text, rejected.session_id) == (" ", session.id)
    assert session.said == ["Hello."]
    run.call.close()


async def test_speech_seconds_is_the_time_of_texts_and_of_their_turn(fake: FakeEngine):
    run = CallRun(fake)
    run.call.speech.say(text("Hello there."))
    assert run.call.speech_seconds == 0  # no session can speak it
    run.call.open(ANNA, SAMPLING)
    pending = run.call.speech_seconds
    assert 1 < pending < 5
    run.call.tick()
    await run.next()
    assert run.call.speech_seconds == pending
    for _ in range(12):  # two pieces and a gap
        assert run.call.speech_seconds > 0
        run.push_frame()
        while not isinstance(await run.next(), SessionFrame):
            pass
    assert run.call.speech_seconds == 0
    run.call.speech.say(text("Goodbye."))
    assert run.call.speech_seconds > 0
    # A text belongs to the session that received it.
    run.call.open(BERT, SAMPLING)
    run.call.tick()
    await run.until(started(fake.sessions[1]))
    assert run.call.speech_seconds == 0
    event = await run.next()
    assert isinstance(event, SpeechEnded)
    assert (event.speech.text, event.speech.state) == ("Goodbye.", "cut")
    assert event.session_id == fake.sessions[0].id
    run.call.speech.say(text("Goodbye."))
    run.call.close()
    assert run.call.speech_seconds == 0


async def test_speech_seconds_is_at_most_what_a_session_accepts():
    with FakeEngine(ready=False) as fake:
        run = CallRun(fake)
        run.call.speech.say(text("word " * 100_000))
        run.call.open(ANNA, SAMPLING)
        assert 120 <= run.call.speech_seconds < 121
        run.call.close()


async def test_frames_that_the_session_dropped_are_not_in_flight(fake: FakeEngine):
    async with active_call(fake) as run:
        session = fake.sessions[0]
        fake.step.clear()
        for _ in range(4):
            run.push_frame()
        assert len(session.heard) == 2
        assert run.call.backlog_frames == 3
        session.dropped_frames = 1
        run.call.tick()
        assert len(session.heard) == 3


async def test_new_sampling_reaches_the_pending_session_too(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.ready = False
        run.call.open(BERT, SAMPLING)
        run.call.update(SamplingParams(seed=3))
        assert [s.sampling.seed for s in fake.sessions] == [3, 3]


async def test_the_sampling_of_a_new_persona_applies_to_the_active_session_at_once(
    fake: FakeEngine,
):
    async with active_call(fake) as run:
        fake.ready = False
        run.call.open(BERT, SamplingParams(seed=3))
        assert [s.sampling.seed for s in fake.sessions] == [3, 3]
        assert run.call.sampling == SamplingParams(seed=3)
        error = SessionFailed("out of memory")
        fake.sessions[1].fail(error)
        assert await run.next() == PersonaRejected(BERT, fake.sessions[1].id, error)
        assert run.call.sampling == SamplingParams(seed=3)


async def test_a_session_that_cannot_change_its_sampling_keeps_it(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(sampling: SamplingParams) -> None:
        raise ConfigError("neither say nor update")

    async with active_call(fake) as run:
        monkeypatch.setattr(fake.sessions[0], "update", unsupported)
        with pytest.raises(ConfigError):
            run.call.update(SamplingParams(seed=2))
        fake.ready = False
        run.call.open(BERT, SamplingParams(seed=3))
        assert run.call.sampling == SAMPLING
        fake.sessions[1].make_ready()
        run.call.tick()
        assert await run.next() == ended(fake.sessions[0])
        assert run.call.sampling == SamplingParams(seed=3)


async def test_a_pending_session_that_has_failed_does_not_prevent_an_update(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    def closed(sampling: SamplingParams) -> None:
        raise SessionFailed("the session is closed")

    async with active_call(fake) as run:
        fake.ready = False
        run.call.open(BERT, SAMPLING)
        monkeypatch.setattr(fake.sessions[1], "update", closed)
        run.call.update(SamplingParams(seed=3))
        assert run.call.sampling == fake.sessions[0].sampling == SamplingParams(seed=3)


async def test_a_distant_engine_may_have_more_frames_in_flight(fake: FakeEngine):
    """Frames take half a second to come back, as from another continent; no input is dropped."""
    fake.max_in_flight_frames = 8
    async with active_call(fake) as run:
        fake.step.clear()
        for _ in range(6):
            run.push_frame()
        assert len(fake.sessions[0].heard) == 6
        fake.step.set()
        assert [(await run.next_frame()).index for _ in range(6)] == [*range(6)]
        assert run.call.pacing.dropped == 0


async def test_an_engine_that_is_too_slow_leaves_no_lasting_delay(fake: FakeEngine):
    async with active_call(fake) as run:
        fake.step.clear()
        for _ in range(10):
            run.push_frame()
        assert len(fake.sessions[0].heard) == fake.max_in_flight_frames
        assert run.call.backlog_frames <= 3
        assert run.call.pacing.dropped > 0
        fake.step.set()
