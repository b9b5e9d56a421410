from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import ConfigError, EngineFailed, EngineFull, SessionFailed
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.call import (
    Call,
    Event,
    PersonaRejected,
    SessionEnded,
    SessionStarted,
    SpeechCut,
    SpeechRejected,
)
from tests.helpers.engines import FakeEngine

ANNA, BERT, CLEO = (Persona("NATF2", name) for name in ("Anna", "Bert", "Cleo"))
SAMPLING = SamplingParams()
FRAME = np.full(FRAME_SAMPLES, 0.5, dtype=np.float32)


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


class Story:
    """A call on a clock that stands still, and what has happened in it."""

    def __init__(self, fake: FakeEngine):
        self.now = 0.0
        self.call = Call(fake, lambda: self.now)
        self.events: list[Event] = []
        self._waiting = self.call.events()

    async def next(self) -> Event:
        event = await asyncio.wait_for(anext(self._waiting), 10)
        self.events.append(event)
        return event

    async def rest(self) -> list[Event]:
        async with asyncio.timeout(10):
            return [event async for event in self._waiting]

    def hear(self) -> None:
        self.now += 0.08
        self.call.hear(FRAME)

    async def answer(self) -> SessionFrame:
        event = await self.next()
        assert isinstance(event, SessionFrame)
        return event


@asynccontextmanager
async def begun(fake: FakeEngine) -> AsyncIterator[Story]:
    story = Story(fake)
    story.call.open(ANNA, SAMPLING)
    story.call.tick()
    assert await story.next() == SessionStarted(ANNA)
    yield story
    story.call.close()
    story.call.close()
    assert not fake.open_sessions


async def test_frames_are_answered_in_order_until_the_call_is_closed(fake: FakeEngine):
    async with begun(fake) as story:
        for index in range(3):
            story.hear()
            assert (await story.answer()).index == index
        story.hear()
        story.call.close()
        assert await story.rest() == [SessionEnded(ANNA, None)]


async def test_a_call_closed_before_its_session_was_ready_had_no_session():
    with FakeEngine(ready=False) as fake:
        story = Story(fake)
        story.call.open(ANNA, SAMPLING)
        story.call.tick()
        story.call.close()
        assert await story.rest() == []
        story.call.open(BERT, SAMPLING)
        assert len(fake.sessions) == 1


async def test_a_second_change_of_mind_replaces_the_first(fake: FakeEngine):
    async with begun(fake) as story:
        fake.ready = False
        story.call.open(BERT, SAMPLING)
        story.call.open(CLEO, SAMPLING)
        anna, bert, cleo = fake.sessions
        assert bert.closed and not anna.closed
        bert.make_ready()
        cleo.make_ready()
        story.call.tick()
        assert await story.next() == SessionEnded(ANNA, None)
        assert await story.next() == SessionStarted(CLEO)
        assert story.call.persona == CLEO
        story.hear()
        await story.answer()
        assert len(cleo.heard) == 1


async def test_a_change_of_mind_needs_no_third_slot():
    with FakeEngine(max_sessions=2) as fake:
        async with begun(fake) as story:
            fake.ready = False
            story.call.open(BERT, SAMPLING)
            story.call.open(CLEO, SAMPLING)
            assert [s.persona for s in fake.open_sessions] == [ANNA, CLEO]


async def test_a_full_engine_changes_nothing():
    with FakeEngine(max_sessions=1) as fake:
        async with begun(fake) as story:
            with pytest.raises(EngineFull):
                story.call.open(BERT, SAMPLING)
            assert story.call.persona == ANNA
            story.hear()
            await story.answer()


async def test_two_hand_overs_in_a_row_leave_one_session(fake: FakeEngine):
    async with begun(fake) as story:
        fake.step.clear()
        story.hear()
        for persona in (BERT, CLEO):
            story.call.open(persona, SAMPLING)
            story.call.tick()
            while await story.next() != SessionStarted(persona):
                pass
        assert [s.persona for s in fake.open_sessions] == [CLEO]
        fake.step.set()
        story.hear()
        await story.answer()
        ends = [e.persona for e in story.events if isinstance(e, SessionEnded)]
        assert ends == [ANNA, BERT]


async def test_the_engine_failing_ends_the_call_once_though_two_sessions_are_open(
    fake: FakeEngine,
):
    async with begun(fake) as story:
        fake.ready = False
        story.call.open(BERT, SAMPLING)
        error = EngineFailed("gone")
        fake.fail(error)
        event = await story.next()
        if isinstance(event, PersonaRejected):  # the two end in either order
            event = await story.next()
        assert event == SessionEnded(ANNA, error)
        assert story.call.persona is None
        story.hear()
        story.call.tick()
        story.call.update(SAMPLING)
        story.call.close()
        assert await story.rest() == []


async def test_a_call_may_be_opened_again_after_its_session_failed(fake: FakeEngine):
    async with begun(fake) as story:
        fake.sessions[0].fail(SessionFailed("NaN"))
        await story.next()
        story.now += 60
        story.call.open(BERT, SAMPLING)
        story.call.tick()
        assert await story.next() == SessionStarted(BERT)
        story.hear()
        await story.answer()
        # The minute without anybody is no debt.
        assert len(fake.sessions[1].heard) <= 3


async def test_words_wait_for_the_session_and_refusals_are_told(fake: FakeEngine):
    story = Story(fake)
    story.call.say("Hello.")
    story.call.say(" ")
    story.call.open(ANNA, SAMPLING)
    assert fake.sessions[0].said == []
    story.call.tick()
    assert await story.next() == SessionStarted(ANNA)
    refused = await story.next()
    assert isinstance(refused, SpeechRejected) and refused.text == " "
    assert fake.sessions[0].said == ["Hello."]
    story.call.cut()
    assert await story.next() == SpeechCut()
    story.call.close()


async def test_what_is_yet_to_be_said_takes_time_until_it_is_over(fake: FakeEngine):
    story = Story(fake)
    story.call.say("Hello there.")
    assert story.call.speech_seconds == 0  # nobody can
    story.call.open(ANNA, SAMPLING)
    unready = story.call.speech_seconds
    assert 1 < unready < 10
    story.call.tick()
    await story.next()
    assert unready < story.call.speech_seconds < 15
    for _ in range(12):  # two pieces and a gap
        assert story.call.speech_seconds > 0
        story.hear()
        await story.answer()
    assert story.call.speech_seconds == 0
    story.call.say("Goodbye.")
    assert story.call.speech_seconds > 0
    # They belong to the session that was told.
    story.call.open(BERT, SAMPLING)
    story.call.tick()
    while await story.next() != SessionStarted(BERT):
        pass
    assert story.call.speech_seconds == 0
    story.call.say("Goodbye.")
    story.call.close()
    assert story.call.speech_seconds == 0


async def test_no_text_is_waited_for_longer_than_a_session_would_take_it():
    with FakeEngine(ready=False) as fake:
        story = Story(fake)
        story.call.say("word " * 100_000)
        story.call.open(ANNA, SAMPLING)
        assert story.call.speech_seconds == 120
        story.call.close()


async def test_a_session_that_drops_input_is_not_waited_for(fake: FakeEngine):
    async with begun(fake) as story:
        session = fake.sessions[0]
        fake.step.clear()
        for _ in range(4):
            story.hear()
        assert len(session.heard) == 2
        assert story.call.owed_frames == 3
        session.dropped_frames = 1
        story.call.tick()
        assert len(session.heard) == 3


async def test_sampling_reaches_the_next_persona_too(fake: FakeEngine):
    async with begun(fake) as story:
        fake.ready = False
        story.call.open(BERT, SAMPLING)
        story.call.update(SamplingParams(seed=3))
        assert [s.sampling.seed for s in fake.sessions] == [3, 3]


async def test_sampling_that_comes_with_a_persona_reaches_the_running_session_at_once(
    fake: FakeEngine,
):
    async with begun(fake) as story:
        fake.ready = False
        story.call.open(BERT, SamplingParams(seed=3))
        assert [s.sampling.seed for s in fake.sessions] == [3, 3]
        assert story.call.sampling == SamplingParams(seed=3)
        fake.sessions[1].fail(SessionFailed("out of memory"))
        assert isinstance(await story.next(), PersonaRejected)
        assert story.call.sampling == SamplingParams(seed=3)


async def test_a_session_that_cannot_draw_in_a_new_way_goes_on_in_the_old(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    def mute(sampling: SamplingParams) -> None:
        raise ConfigError("neither say nor update")

    async with begun(fake) as story:
        monkeypatch.setattr(fake.sessions[0], "update", mute)
        with pytest.raises(ConfigError):
            story.call.update(SamplingParams(seed=2))
        fake.ready = False
        story.call.open(BERT, SamplingParams(seed=3))
        assert story.call.sampling == SAMPLING
        fake.sessions[1].make_ready()
        story.call.tick()
        assert await story.next() == SessionEnded(ANNA, None)
        assert story.call.sampling == SamplingParams(seed=3)


async def test_a_next_persona_that_has_failed_hinders_no_update(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    def over(sampling: SamplingParams) -> None:
        raise SessionFailed("the session is closed")

    async with begun(fake) as story:
        fake.ready = False
        story.call.open(BERT, SAMPLING)
        monkeypatch.setattr(fake.sessions[1], "update", over)
        story.call.update(SamplingParams(seed=3))
        assert story.call.sampling == fake.sessions[0].sampling == SamplingParams(seed=3)


async def test_a_distant_engine_may_owe_more_and_nothing_is_lost_on_the_way(fake: FakeEngine):
    """Answers take half a second, as from another continent: the caller's words all arrive."""
    fake.max_in_flight_frames = 8
    async with begun(fake) as story:
        fake.step.clear()
        for _ in range(6):
            story.hear()
        assert len(fake.sessions[0].heard) == 6
        fake.step.set()
        assert [(await story.answer()).index for _ in range(6)] == [*range(6)]
        assert story.call.pacing.dropped == 0


async def test_an_engine_that_is_too_slow_leaves_no_lasting_delay(fake: FakeEngine):
    async with begun(fake) as story:
        fake.step.clear()
        for _ in range(10):
            story.hear()
        assert len(fake.sessions[0].heard) == fake.max_in_flight_frames
        assert story.call.owed_frames <= 3
        assert story.call.pacing.dropped > 0
        fake.step.set()
