"""Holds of the application and of the delegation, which end apart."""

from __future__ import annotations

import asyncio

import pytest
from pipecat.frames.frames import LLMUpdateSettingsFrame

from pipecat_personaplex import Hold
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import ALL_FEATURES
from pipecat_personaplex.service.holds import Holder, Holds
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.delegation import delegated_call
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import StubLLM
from tests.helpers.pipelines import ManualClock, RunningPipeline, on_call, started


class Session:
    """Stores the holds that it was given; 0 for a release."""

    def __init__(self) -> None:
        self.holds: list[float] = []

    def hold(self, seconds: float) -> None:
        self.holds.append(seconds)

    def release(self) -> None:
        self.holds.append(0.0)


BOTH = pytest.mark.parametrize(
    ("longer", "shorter"), [("application", "delegation"), ("delegation", "application")]
)


@BOTH
def test_a_hold_lasts_until_the_later_end(
    clock: ManualClock, longer: Holder, shorter: Holder
) -> None:
    session, holds = Session(), Holds(clock)
    holds.hold(session, longer, 30.0)
    clock.now += 2.0
    holds.hold(session, shorter, 3.0)
    clock.now += 1.0
    holds.release(session, shorter)
    holds.release(session, longer)
    assert session.holds == [30.0, 28.0, 27.0, 0.0]


@BOTH
def test_a_release_of_the_longer_hold_leaves_the_shorter_one(
    clock: ManualClock, longer: Holder, shorter: Holder
) -> None:
    session, holds = Session(), Holds(clock)
    holds.hold(session, shorter, 3.0)
    holds.hold(session, longer, 30.0)
    clock.now += 1.0
    holds.release(session, longer)
    clock.now += 5.0
    holds.release(session, longer)
    assert session.holds == [3.0, 30.0, 2.0, 0.0]


def test_a_hold_of_the_same_holder_replaces_the_one_before(clock: ManualClock) -> None:
    session, holds = Session(), Holds(clock)
    for seconds in (30.0, 1.0):
        holds.hold(session, "application", seconds)
    assert session.holds == [30.0, 1.0]


def test_an_invalid_length_changes_nothing(clock: ManualClock) -> None:
    session, holds = Session(), Holds(clock)
    holds.hold(session, "delegation", 5.0)
    for seconds in (-1.0, 31.0, float("nan")):
        with pytest.raises(ConfigError, match="from 0 to 30"):
            holds.hold(session, "application", seconds)
    holds.release(session, "delegation")
    assert session.holds == [5.0, 0.0]


async def test_a_hold_outlives_the_first_session_that_is_pending(
    fake: FakeEngine, clock: ManualClock
) -> None:
    fake.ready = False
    service = PersonaPlexLLMService(fake, clock=clock)
    async with RunningPipeline([service], clock=clock) as pipeline:
        await pipeline.until(lambda: fake.sessions)
        service.hold(5.0)
        delta = PersonaPlexLLMService.Settings(system_instruction="You sell tea.")
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: len(fake.sessions) == 2)
        clock.now += 2.0
        first, second = fake.sessions
        second.make_ready()
        await pipeline.until(lambda: second.holds)
        assert (first.holds, second.holds) == ([5.0], [3.0])


async def test_a_hold_that_has_ended_does_not_hold_the_next_session(clock: ManualClock) -> None:
    with FakeEngine(features=ALL_FEATURES - {"prompt"}) as fake:
        async with on_call(fake, clock) as (service, pipeline, events):
            for count, (voice, seconds) in enumerate([("NATM1", 5.0), ("NATF2", 2.0)], 2):
                service.hold(5.0)
                clock.now += seconds
                delta = PersonaPlexLLMService.Settings(voice=voice)
                await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
                await started(pipeline, events, count)
            assert [session.holds for session in fake.sessions] == [[5.0], [5.0], [3.0]]


@pytest.mark.realtime
async def test_a_delegation_leaves_the_hold_of_the_application(fake: FakeEngine) -> None:
    hold = Hold.until_decided(router=lambda text: True)
    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), hold=hold) as call,
    ):
        call.agent.hold(30.0)
        await call.says("Hello.")
        await call.until(lambda: llm.requests and not call.agent.delegation_state.held)
        await asyncio.sleep(0.05)
        [session] = fake.sessions
        assert len(session.holds) > 2 and min(session.holds) > 20
        call.agent.release()
        assert session.holds[-1] == 0.0
