"""One call of the page: its pipeline, and what it reports to the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pipecat.frames.frames import ErrorFrame
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIFunctionCallReportLevel, RTVIObserverParams
from pipecat.transports.base_transport import BaseTransport
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.interface import EngineLike, FrameTimings, Speech
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.pace import PacedInput
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from pipecat_personaplex.talk.client_messages import ClientMessages
from pipecat_personaplex.talk.level_vad import LevelVAD

# A page that got its answer and does not connect must not hold a slot.
_CONNECT_SECONDS = 15.0
# The page takes a server that is silent for longer than a few of these for gone.
_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class CallRequest:
    """What the page requests for a call.

    Attributes:
        persona: Voice and role.
        sampling: How tokens are sampled.
        greeting: A sentence with which the agent opens the call; empty for none.
    """

    persona: Persona
    sampling: SamplingParams = field(default_factory=SamplingParams)
    greeting: str = ""


class Conversation:
    """The pipeline of one call.

    Args:
        engine: The engine that all calls share.
        transport: The connection to the browser.
        request: What the page requests.
        transcriber: Creates the service that writes down what the caller says; None for no
            transcript of the caller.

    Example::

        conversation = Conversation(engine, transport, CallRequest(Persona("NATF2")))
        reason = await conversation.run()
    """

    def __init__(
        self,
        engine: EngineLike,
        transport: BaseTransport,
        request: CallRequest,
        transcriber: Callable[[], FrameProcessor] | None = None,
    ):
        self._transport = transport
        playout = PlayoutMeter()
        sampling = request.sampling
        self._agent = PersonaPlexLLMService(
            engine,
            settings=PersonaPlexLLMSettings(
                voice=request.persona.voice,
                system_instruction=request.persona.text_prompt or None,
                seed=sampling.seed,
                temperature_audio=sampling.temperature_audio,
                temperature_text=sampling.temperature_text,
                top_k_audio=sampling.top_k_audio,
                top_k_text=sampling.top_k_text,
            ),
            greeting=request.greeting or None,
            playout=playout,
        )
        # The model decides by itself when to speak. The aggregators collect the agent's words
        # into turns, and Pipecat sends these to the page.
        user, assistant = LLMContextAggregatorPair(
            LLMContext(),
            user_params=LLMUserAggregatorParams(
                user_turn_strategies=ExternalUserTurnStrategies(enable_interruptions=False)
            ),
        )
        listening: list[FrameProcessor] = [user, ClientMessages(self._agent), self._agent]
        if transcriber is not None:
            # In parallel: the time that a transcription takes must not delay the model.
            branches = [[transcriber(), user], [ClientMessages(self._agent), self._agent]]
            listening = [ParallelPipeline(*branches)]  # type: ignore[no-untyped-call]
        self._worker = PipelineWorker(
            Pipeline(
                [
                    self._transport.input(),
                    PacedInput(),
                    VADProcessor(vad_analyzer=LevelVAD()),
                    *listening,
                    self._transport.output(),
                    playout,
                    assistant,
                ]
            ),
            params=PipelineParams(
                audio_in_sample_rate=SAMPLE_RATE,
                audio_out_sample_rate=SAMPLE_RATE,
                enable_metrics=True,
                enable_usage_metrics=True,
                send_initial_empty_metrics=False,
            ),
            idle_timeout_secs=None,  # the page's heartbeat ends a call that nobody hears
            processor_unusable_policy=ProcessorUnusablePolicy.END,
            rtvi_observer_params=RTVIObserverParams(
                function_call_report_level={"*": RTVIFunctionCallReportLevel.FULL},
                vad_user_speaking_enabled=True,
            ),
        )
        self._connected = asyncio.Event()
        self._end_reason = ""
        self._late_frames = 0
        self._persona: Persona | None = None  # once the session has started
        self._report_events()

    @property
    def ending(self) -> bool:
        """Whether the call is about to free its slot."""
        return self._end_reason != ""

    async def run(self) -> str:
        """Talk until the caller hangs up or the agent cannot go on.

        Returns:
            Why the call ended, for the log.
        """
        workers = WorkerRunner(handle_sigint=False)
        await workers.add_workers(self._worker)
        helpers = [
            asyncio.create_task(self._require_connection()),
            asyncio.create_task(self._tick()),
        ]
        try:
            await workers.run()
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return self._end_reason or "the pipeline ended"

    async def hang_up(self, reason: str) -> None:
        """End the call at once."""
        self._end_reason = self._end_reason or reason
        await self._worker.cancel(reason=reason)

    async def _require_connection(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._connected.wait()
            return
        await self.hang_up("the browser did not connect")

    async def _tick(self) -> None:
        """Tell the page once a second that the bot is alive."""
        await self._connected.wait()
        started = time.monotonic()
        while True:
            await self._send("tick", seconds=round(time.monotonic() - started, 2))
            await asyncio.sleep(_TICK_SECONDS)

    async def _send(self, kind: str, **data: Any) -> None:
        await self._worker.rtvi.send_server_message({"kind": kind, **data})

    def _report_events(self) -> None:
        """Send the agent's events to the page, as RTVI server messages."""
        agent, transport, worker = self._agent, self._transport, self._worker

        @transport.event_handler("on_client_connected")  # type: ignore[untyped-decorator]
        async def on_client_connected(transport: object, client: object) -> None:
            self._connected.set()

        @worker.rtvi.event_handler("on_client_ready")  # type: ignore[untyped-decorator]
        async def on_client_ready(rtvi: object) -> None:
            # What was sent before is lost if the page was not listening yet.
            if self._persona is not None:
                await self._send_persona("started", self._persona)

        @transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def on_client_disconnected(transport: object, client: object) -> None:
            await self.hang_up("the caller hung up")

        @worker.event_handler("on_pipeline_error")  # type: ignore[untyped-decorator]
        async def on_pipeline_error(worker: object, frame: ErrorFrame) -> None:
            logger.debug("call: {}", frame.error)
            if frame.processor is not None and not frame.processor.is_usable:
                self._end_reason = " ".join(frame.error.split())  # this error ends the pipeline

        @agent.event_handler("on_session_started")  # type: ignore[untyped-decorator]
        async def on_session_started(agent: object, persona: Persona) -> None:
            self._persona = persona
            await self._send_persona("started", persona)

        @agent.event_handler("on_prompt_changed")  # type: ignore[untyped-decorator]
        async def on_prompt_changed(agent: object, persona: Persona) -> None:
            self._persona = persona
            await self._send_persona("changed", persona)

        @agent.event_handler("on_speech_started")  # type: ignore[untyped-decorator]
        async def on_speech_started(agent: object, speech: Speech) -> None:
            await self._send("speech", state="speaking", text=speech.text)

        @agent.event_handler("on_speech_done")  # type: ignore[untyped-decorator]
        async def on_speech_done(agent: object, speech: Speech) -> None:
            await self._send("speech", state="said", text=speech.text)

        @agent.event_handler("on_speech_cut")  # type: ignore[untyped-decorator]
        async def on_speech_cut(agent: object, text: str, spoken: int) -> None:
            await self._send("speech", state="cut", text=text, spoken=spoken)

        @agent.event_handler("on_late_frame")  # type: ignore[untyped-decorator]
        async def on_late_frame(agent: object, timings: FrameTimings) -> None:
            self._late_frames += 1
            await self._send("late", ms=round(timings.total_ms), frames=self._late_frames)

    async def _send_persona(self, state: str, persona: Persona) -> None:
        await self._send("persona", state=state, voice=persona.voice, prompt=persona.text_prompt)
