"""The Pipecat service on a remote engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from pipecat.frames.frames import LLMUpdateSettingsFrame, SpeechOutputAudioRawFrame

from pipecat_personaplex.errors import EngineFull, SessionLost
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.pipelines import Events, RunningPipeline, errors, started, tone
from tests.remote.fakes import FakeServer
from tests.remote.helpers import FRIEND

Settings = PersonaPlexLLMService.Settings


@asynccontextmanager
async def remote(server: FakeServer) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(server.url)
    await asyncio.to_thread(engine.start)
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


def service_on(engine: RemoteEngine) -> PersonaPlexLLMService:
    settings = Settings(voice="NATF2", system_instruction=FRIEND.text_prompt)
    return PersonaPlexLLMService(engine, settings=settings, greeting="Hello there!")


def resumed_since(server: FakeServer, before: int) -> bool:
    return server.resumed > before


async def test_a_call_survives_a_cut_connection() -> None:
    with FakeServer() as server:
        async with remote(server) as engine:
            service = service_on(engine)
            events, pipeline = Events(service), RunningPipeline([service])
            async with pipeline:
                await started(pipeline, events)
                for cuts in range(3):
                    await pipeline.speak(tone(0.8))
                    await pipeline.until_count(SpeechOutputAudioRawFrame, 10 * (cuts + 1))
                    before = server.resumed
                    server.cut()
                    await pipeline.until(partial(resumed_since, server, before))
            assert not errors(pipeline) and len(server.conversations) == 1
            conversation = server.conversations["secret-0"]
            # The service fills the time of each cut with silence.
            assert conversation.received == list(range(len(conversation.received)))
            assert conversation.messages[0] == {"type": "say", "text": "Hello there!"}
            assert np.abs(pipeline.audio()).max() > 7_000
            await pipeline.until(lambda: not server.open)


async def test_a_lost_server_ends_the_call_with_an_error() -> None:
    with FakeServer() as server:
        server.resume_seconds = 0.5
        async with remote(server) as engine:
            service = service_on(engine)
            events, pipeline = Events(service), RunningPipeline([service])
            async with pipeline:
                await started(pipeline, events)
                await pipeline.speak(tone(0.8))
                server.stop()
                await pipeline.until(lambda: errors(pipeline))
            assert isinstance(errors(pipeline)[0].exception, SessionLost)
            (_, error) = events.named("on_session_ended")[0]
            assert isinstance(error, SessionLost)


async def test_a_late_refusal_ends_the_call() -> None:
    with FakeServer() as server:
        async with remote(server) as engine:
            server.max_sessions = 0  # since the poll
            service = service_on(engine)
            pipeline = RunningPipeline([service])
            async with pipeline:
                await pipeline.until(lambda: errors(pipeline))
            assert isinstance(errors(pipeline)[0].exception, EngineFull)


async def test_a_refused_persona_leaves_the_call_unchanged() -> None:
    with FakeServer(max_sessions=1) as server:
        async with remote(server) as engine:
            service = service_on(engine)
            events, pipeline = Events(service), RunningPipeline([service])
            async with pipeline:
                await started(pipeline, events)
                delta = Settings(system_instruction="You sell tea.")
                await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
                await pipeline.until(lambda: errors(pipeline))
                await pipeline.speak(tone(0.8))
                await pipeline.until_count(SpeechOutputAudioRawFrame, 10)
            assert isinstance(errors(pipeline)[0].exception, EngineFull)
            assert len(events.named("on_session_started")) == 1
