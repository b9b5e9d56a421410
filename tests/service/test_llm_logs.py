"""Log lines about a session carry its public id."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger
from pipecat.frames.frames import LLMUpdateSettingsFrame, TTSSpeakFrame

from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.interface import ALL_FEATURES
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import ManualClock, errors, on_call

Settings = PersonaPlexLLMService.Settings


@pytest.fixture
def log() -> Iterator[list[tuple[str, str, str]]]:
    """Level, session id and message of each log line."""
    lines: list[tuple[str, str, str]] = []
    sink = logger.add(
        lambda message: lines.append(
            (
                message.record["level"].name,
                message.record["extra"].get("session", ""),
                message.record["message"],
            )
        )
    )
    yield lines
    logger.remove(sink)


async def test_the_start_and_end_of_a_session_are_logged_with_its_id(
    fake: FakeEngine, clock: ManualClock, log: list[tuple[str, str, str]]
):
    async with on_call(fake, clock) as (service, _, _):
        session_id = fake.sessions[0].id
        assert service.session_id == session_id
    assert service.session_id is None
    started = f"{service}: session {session_id} started with voice NATF2"
    assert ("INFO", session_id, started) in log
    assert ("INFO", session_id, f"{service}: session {session_id} ended") in log


async def test_an_error_of_a_pending_session_is_logged_with_the_id_of_that_session(
    clock: ManualClock, log: list[tuple[str, str, str]]
):
    with FakeEngine(features=ALL_FEATURES - {"prompt"}) as fake:
        async with on_call(fake, clock) as (service, pipeline, _):
            fake.ready = False
            await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATM1")))
            await pipeline.until(lambda: len(fake.sessions) == 2)
            assert service.session_id == fake.sessions[0].id
            fake.sessions[1].fail(SessionFailed("out of memory"))
            await pipeline.until(lambda: errors(pipeline))
            rejected = [line for line in log if "out of memory" in line[2]]
            assert {session for _, session, _ in rejected} == {fake.sessions[1].id}


async def test_a_new_prompt_is_logged_with_the_id_and_without_its_text(
    fake: FakeEngine, clock: ManualClock, log: list[tuple[str, str, str]]
):
    async with on_call(fake, clock) as (service, pipeline, events):
        delta = Settings(voice="NATM1", system_instruction="You sell tea.")
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: events.named("on_prompt_changed"))
        session_id = fake.sessions[0].id
    changed = f"{service}: session {session_id} has a new prompt, voice NATM1"
    assert ("INFO", session_id, changed) in log
    assert not [line for line in log if line[0] != "DEBUG" and "tea" in line[2]]


async def test_a_rejected_text_is_logged_with_the_id_of_its_session(
    fake: FakeEngine, clock: ManualClock, log: list[tuple[str, str, str]]
):
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.send(TTSSpeakFrame(" "))
        await pipeline.until(lambda: errors(pipeline))
        rejected = [line for line in log if "cannot be spoken" in line[2]]
        assert {session for _, session, _ in rejected} == {fake.sessions[0].id}
