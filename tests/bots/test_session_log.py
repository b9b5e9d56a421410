"""The log lines of the sessions that one call opens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import LLMService
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

from bots.session_log import LoggedEngine
from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import ConfigError, EngineFull, SessionFailed
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine

PERSONA = Persona(voice="NATF2", text_prompt="You enjoy tea.")


@pytest.fixture
def records() -> Iterator[list[Any]]:
    records: list[Any] = []
    sink = logger.add(lambda message: records.append(message.record), level="DEBUG")
    yield records
    logger.remove(sink)


def summary(records: list[Any]) -> list[tuple[str, str, str, str]]:
    """Level, session, client and the message up to its colon."""
    return [
        (
            record["level"].name,
            record["extra"]["session"],
            record["extra"]["client"],
            record["message"].partition(":")[0],
        )
        for record in records
    ]


def test_a_delegation_learns_what_the_engine_cannot_do() -> None:
    engine = LoggedEngine(FakeEngine(features=frozenset({"say"})), "caller")
    delegation = PersonaPlexLLMService.Delegation
    backend = BackendLLMWorker(llm=LLMService(), context=LLMContext())
    with pytest.raises(ConfigError, match="this one does not support hold, prompt"):
        PersonaPlexLLMService(engine, delegation=delegation(backend=backend))


@pytest.mark.parametrize("ready_at_once", [True, False])
def test_a_session_is_logged_with_its_id_when_it_is_ready(
    records: list[Any], ready_at_once: bool
) -> None:
    called: list[str] = []
    with FakeEngine(ready=ready_at_once) as fake:
        engine = LoggedEngine(fake, "caller")
        assert engine.session_id == ""
        session = engine.open_session(
            PERSONA,
            on_frame=lambda frame: None,
            on_ready=lambda: called.append("ready"),
            on_end=lambda error: called.append("end"),
        )
        assert session is fake.sessions[0] and engine.session_id == session.id
        if not ready_at_once:
            assert records == [] and called == []
            fake.sessions[0].make_ready()
        session.close()
        assert fake.sessions[0].wait_ended(10)
    assert summary(records) == [("INFO", session.id, "caller", "session started")]
    assert called == ["ready", "end"]
    assert not any("tea" in record["message"] for record in records)


def test_a_failure_is_logged_with_the_id_of_its_session(records: list[Any]) -> None:
    ended: list[object] = []
    with FakeEngine() as fake:
        engine = LoggedEngine(fake, "caller")
        first = engine.open_session(PERSONA, on_frame=lambda frame: None, on_end=ended.append)
        second = engine.open_session(PERSONA, on_frame=lambda frame: None)
        error = SessionFailed("the device\nfailed")
        fake.sessions[0].fail(error)
        assert fake.sessions[0].wait_ended(10)
        assert engine.session_id == second.id
    assert ended == [error]
    assert summary(records)[2:] == [("WARNING", first.id, "caller", "session failed")]
    assert records[2]["message"] == "session failed: the device failed"


def test_a_session_that_is_not_opened_is_not_logged(records: list[Any]) -> None:
    with FakeEngine(max_sessions=1) as fake:
        engine = LoggedEngine(fake, "caller")
        only = engine.open_session(PERSONA, on_frame=lambda frame: None)
        with pytest.raises(EngineFull):
            engine.open_session(PERSONA, on_frame=lambda frame: None)
        assert engine.session_id == only.id
    assert len(records) == 1
    assert (engine.voices, engine.max_sessions) == (fake.voices, 1)
    assert engine.max_in_flight_frames == fake.max_in_flight_frames
