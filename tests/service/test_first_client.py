"""The call begins when the caller is there, with transports that announce their caller."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from pipecat.frames.frames import (
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    LLMUpdateSettingsFrame,
)
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import PromptTooLong, VoiceNotFound
from pipecat_personaplex.service.first_client import announces_client
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, errors, started
from tests.helpers.transports import FakeInput, FakeTransport

Settings = PersonaPlexLLMService.Settings
SILENCE = InputAudioRawFrame(bytes(960), 24_000, 1)


class DailyInputTransport(FakeInput):
    """The service knows Daily's transport by this name."""


def daily() -> BaseTransport:
    from pipecat.transports.daily.transport import DailyParams, DailyTransport

    return DailyTransport("https://example.daily.co/room", "token", "bot", DailyParams())


def smallwebrtc() -> BaseTransport:
    return SmallWebRTCTransport(SmallWebRTCConnection(), TransportParams())


needs_daily = pytest.mark.skipif(
    importlib.util.find_spec("daily") is None, reason="Daily's client is not installed"
)


@pytest.mark.parametrize("create", [smallwebrtc, pytest.param(daily, marks=needs_daily)])
async def test_transports_that_announce_their_caller(create: Any) -> None:
    """Pipecat's transports have these names, and push the frame."""
    transport = create()
    nested = ParallelPipeline([transport.output()], [Pipeline([transport.input()])])
    assert announces_client(PipelineWorker(Pipeline([nested])))
    assert "self._input.push_frame(ClientConnectedFrame())" in inspect.getsource(type(transport))


async def test_other_pipelines_have_their_caller_at_the_start() -> None:
    socket = FastAPIWebsocketTransport(cast(Any, object()), FastAPIWebsocketParams())
    fake = FakeTransport(TransportParams(), lambda now, audio: None)
    for transport in (socket, fake):
        assert not announces_client(PipelineWorker(Pipeline([transport.input()])))
    assert not announces_client(None)


@asynccontextmanager
async def waiting(
    engine: FakeEngine, **options: Any
) -> AsyncIterator[tuple[PersonaPlexLLMService, RunningPipeline, Events]]:
    """A call whose pipeline has started and whose caller has not connected."""
    params = TransportParams(audio_in_enabled=True)
    transport = FakeTransport(params, lambda now, audio: None, DailyInputTransport)
    clock = ManualClock()
    service = PersonaPlexLLMService(engine, clock=clock, greeting="Good morning.", **options)
    processors: list[FrameProcessor] = [transport.input(), service]
    events = Events(service)
    async with RunningPipeline(processors, clock=clock) as pipeline:
        await asyncio.wait_for(transport.ready.wait(), 10)
        yield service, pipeline, events
        await pipeline.end_while_time_passes()  # the greeting is not spoken


@pytest.mark.parametrize("first", [ClientConnectedFrame(), SILENCE], ids=["client", "audio"])
async def test_the_session_and_the_greeting_wait_for_the_caller(
    fake: FakeEngine, first: Frame
) -> None:
    async with waiting(fake) as (service, pipeline, events):
        voice = Settings(voice="NATM1")
        await pipeline.send(LLMUpdateSettingsFrame(delta=voice))
        pipeline.clock.now += 60
        await asyncio.sleep(0.1)
        assert not fake.sessions
        await pipeline.send(first)
        await started(pipeline, events)
        for again in (ClientConnectedFrame(), SILENCE):  # another one joins, and speaks
            await pipeline.send(again)
        await pipeline.until_count(InputAudioRawFrame, 2 if first is SILENCE else 1)
        (session,) = fake.sessions
        assert session.persona.voice == "NATM1", "as the settings were changed meanwhile"
        assert session.said == ["Good morning."]
        assert service.session_id == session.id
        assert not session.heard, "the minute without a caller is no silence of the caller"


async def test_a_call_that_nobody_joins_ends_without_a_session(fake: FakeEngine) -> None:
    async with waiting(fake) as (_, pipeline, events):
        await pipeline.send(EndFrame())
        await pipeline.ended()
    assert not fake.sessions and not events.seen


INVALID = [
    (Settings(temperature_audio=-1.0), "temperature_audio must be from 0"),
    (Settings(voice=7), "voice must be text"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("delta", "message"), INVALID, ids=["sampling", "voice"])
async def test_an_invalid_setting_before_the_caller_connects_is_refused(
    fake: FakeEngine, delta: Settings, message: str
) -> None:
    async with waiting(fake) as (service, pipeline, events):
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: errors(pipeline))
        assert message in errors(pipeline)[0].error
        await pipeline.send(ClientConnectedFrame())
        await started(pipeline, events)
        assert service.is_usable and len(errors(pipeline)) == 1
        assert fake.sessions[0].sampling == SamplingParams()


@pytest.mark.parametrize("later", [False, True], ids=["at once", "as a server reports it"])
async def test_a_voice_and_a_role_that_the_engine_refuses_give_way_to_the_first_ones(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    accept, too_long = fake.open_session, PromptTooLong(2_000, 1_500)

    def open_session(persona: Persona, *args: Any, **options: Any) -> Any:
        refused = "tea" in persona.text_prompt
        if refused and not later:
            fake.require_voice(persona)
            raise too_long
        fake.ready = not refused
        session = accept(persona, *args, **options)
        if refused:
            session.fail(too_long)
        return session

    monkeypatch.setattr(fake, "open_session", open_session)
    first = Settings(voice="NATM1", system_instruction="You sell hats.")
    async with waiting(fake, settings=first) as (service, pipeline, events):
        delta = Settings(voice="nope", system_instruction="You sell tea.", seed=3)
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until_count(LLMUpdateSettingsFrame, 1)
        await pipeline.send(ClientConnectedFrame())
        await started(pipeline, events)
        [session] = fake.open_sessions
        assert session.persona == Persona("NATM1", "You sell hats.")
        assert session.said == ["Good morning."]
        assert service.is_usable and service.settings.voice == "NATM1"
        assert service.settings.seed == session.sampling.seed == 3
        assert [type(error.exception) for error in errors(pipeline)] == [
            VoiceNotFound,
            PromptTooLong,
        ]
