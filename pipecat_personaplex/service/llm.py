"""The Pipecat service: PersonaPlex replaces speech-to-text, language model and text-to-speech."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMServiceMetadataFrame,
    LLMUpdateSettingsFrame,
    MetricsFrame,
    StartFrame,
    TTSSpeakFrame,
    UserMuteStartedFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import MetricsData
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import checked_text
from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.interface import EngineLike, SessionFrame
from pipecat_personaplex.service.call_events import (
    Event,
    PersonaRejected,
    PromptChanged,
    SessionEnded,
    SessionStarted,
    SpeechEnded,
    SpeechRejected,
    SpeechStarted,
)
from pipecat_personaplex.service.caller_input import CallerInput
from pipecat_personaplex.service.caller_speech import CallerSpeech
from pipecat_personaplex.service.control_frames import PersonaPlexHoldFrame, PersonaPlexReleaseFrame
from pipecat_personaplex.service.delegation.delegating_service import DelegatingService
from pipecat_personaplex.service.delegation.delegation import Delegation as _Delegation
from pipecat_personaplex.service.delegation.delegator import Delegator
from pipecat_personaplex.service.end_gate import EndGate, EndProbeFrame
from pipecat_personaplex.service.errors import as_personaplex_error
from pipecat_personaplex.service.first_client import announces_client
from pipecat_personaplex.service.frames import AgentOutput
from pipecat_personaplex.service.metrics import MetricsWindow, response_metrics
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.response_time import ResponseTime
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings

_TICK_SECONDS = 0.02
# About 5 s: every metrics frame becomes a message to the client.
_METRICS_FRAMES = 62
# For the event task to push its last frames once the call is closed.
_CLOSING_SECONDS = 1.0
_EVENTS = (
    "on_session_started",
    "on_session_ended",
    "on_prompt_changed",
    "on_speech_started",
    "on_speech_cut",
    "on_speech_done",
    "on_late_frame",
    "on_backend_error",
)


class PersonaPlexLLMService(DelegatingService):
    """PersonaPlex as one Pipecat service: the caller's audio in, the agent's audio and words out.

    The model listens and speaks at the same time and decides by itself when to do either. It
    needs no VAD, no turn detection and no interruptions: an ``InterruptionFrame`` cuts only
    what ``say`` was given, and the model continues.

    The call begins when the pipeline starts. With Pipecat's SmallWebRTC and Daily transports, it
    begins when the caller has connected: on the first ``ClientConnectedFrame``, or with the first
    audio.

    The agent speaks the text of a ``TTSSpeakFrame`` word for word, and nothing cuts it. ``say``
    does the same for text that the caller may cut by speaking. On ``EndFrame``, the service waits
    until all texts are spoken and their turn has ended, at most 10 s beyond their estimated
    duration. On ``CancelFrame``, it does not wait.

    The role belongs in ``Settings``. If ``Settings`` has no role, the system message of the first
    context becomes one. Later system and developer messages become facts in the prompt. The model
    does not get the messages of users and assistants: it has heard them. It calls no functions; the
    LLM of a ``Delegation`` does.

    Event handlers available:

    - on_session_started(service, persona): The persona receives the caller's audio from now on.
    - on_session_ended(service, persona, error): The session of this persona has ended; error is
      None if it was closed on purpose.
    - on_prompt_changed(service, persona): The agent has this persona from now on, and remembers
      the call. An engine that cannot do so opens another session instead.
    - on_speech_started(service, speech): The agent begins to speak a text.
    - on_speech_done(service, speech): It has spoken the whole text.
    - on_speech_cut(service, text, spoken): Only this many words of the text were spoken: the caller
      spoke, ``hush`` was called or the session failed. At the end of a call it is not called.
    - on_late_frame(service, timings): A frame was received later than 80 ms after its input.
    - on_backend_error(service, message): The backend of the delegation failed; the call goes on.

    Args:
        engine: A started engine, shared by every call of the process.
        settings: Settings that differ from the defaults.
        greeting: A sentence with which the agent opens the call. The words are forced; the model
            generates the sound.
        playout: The meter after ``transport.output()``. If given, silent audio is dropped while
            too much audio waits to be played.
        noise_gate_dbfs: RMS level below which the agent's audio becomes digital silence, so that
            listeners can tell when it has stopped speaking; None for no gate.
        delegation: An LLM with tools behind the voice; None for none.
        clock: Returns monotonic seconds; paces the input.
        **kwargs: Passed to ``LLMService``.

    Raises:
        ConfigError: ``engine`` is not an engine, or a setting or the greeting is invalid.

    Example::

        with Engine.load("auto", EngineConfig(max_sessions=4)) as engine:
            playout = PlayoutMeter()
            agent = PersonaPlexLLMService(
                engine,
                settings=PersonaPlexLLMService.Settings(
                    voice="NATF2", system_instruction="You enjoy having a good conversation."
                ),
                greeting="Hello!",
                playout=playout,
            )
            user, assistant = LLMContextAggregatorPair(LLMContext())
            pipeline = Pipeline(
                [transport.input(), user, agent, transport.output(), playout, assistant]
            )
            runner = WorkerRunner()
            await runner.add_workers(PipelineWorker(pipeline))
            await runner.run()
    """

    Delegation = _Delegation

    def __init__(
        self,
        engine: EngineLike,
        *,
        settings: PersonaPlexLLMSettings | None = None,
        greeting: str | None = None,
        playout: PlayoutMeter | None = None,
        noise_gate_dbfs: float | None = -50.0,
        delegation: _Delegation | None = None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ):
        super().__init__(engine, settings, clock, **kwargs)
        if delegation is not None:
            self._delegator = Delegator(self, delegation, engine)
        self._input = CallerInput()
        self._caller_speech = CallerSpeech()
        self._output = AgentOutput(playout, noise_gate_dbfs)
        self._metrics_window = MetricsWindow()
        self._end_gate = EndGate(self, self._call, self.warn)
        self._response_time = ResponseTime()
        self._awaits_client = False
        self._begun = False
        self._clock_task: asyncio.Task[None] | None = None
        self._event_task: asyncio.Task[None] | None = None
        if greeting:
            self.say(checked_text("the greeting", greeting), interruptible=False, when="now")
        for name in _EVENTS:
            self._register_event_handler(name)

    def can_generate_metrics(self) -> bool:
        """Return True; see ``PersonaPlexMetricsData``."""
        return True

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        """Ask the aggregators for no turn detection and no interruptions."""
        return LLMServiceMetadataFrame(
            service_name=self.name,
            user_turn_strategies=ExternalUserTurnStrategies(enable_interruptions=False),
        )

    # For the pipeline.

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Use the pipeline's output sample rate; each input frame carries its own."""
        await super().setup(setup)
        self._output.set_rate(setup.audio_out_sample_rate)
        await self._delegator.open()
        self._end_gate.attach(setup.pipeline_worker)
        self._awaits_client = announces_client(setup.pipeline_worker)

    async def start(self, frame: StartFrame) -> None:
        """Open the session, unless the caller is yet to connect."""
        await super().start(frame)
        self._event_task = self.create_task(self._follow_events(), f"{self}::events")
        self._clock_task = self.create_task(self._follow_clock(), f"{self}::clock")
        if not self._awaits_client:
            await self._begin_call()

    async def _begin_call(self) -> None:
        """Open the session if that was not done; its prompt is computed in the background."""
        if not self._begun:
            self._begun = self._call.opening = True
            await self._delegator.ground(self._open_call)

    async def _open_call(self) -> None:
        try:
            await self._open_first_session()
        except Exception as error:  # Pipecat would only log it, and the call would be silent
            await self._fail_call(as_personaplex_error(error))
        finally:
            self._call.opening = False

    async def stop(self, frame: EndFrame) -> None:
        """Close the session; wait for texts only if the EndFrame did not come from the worker."""
        await super().stop(frame)
        await self._end_gate.wait()
        await self._teardown()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close the session without waiting for texts."""
        await super().cancel(frame)
        await self._teardown()

    async def cleanup(self) -> None:
        """Close the session if it is still open."""
        await self._teardown()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass audio, texts, holds and settings to the call, and push every frame on."""
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM:
            self._delegator.process(frame)
        match frame:
            case ClientConnectedFrame():
                await self._begin_call()
            case InputAudioRawFrame():
                await self._begin_call()  # a ServiceSwitcher may have kept the frame above back
                await self._push_input(self._input.pcm(frame))
            case VADUserStartedSpeakingFrame():
                self._response_time.caller_started()
                self._caller_speech.vad(True, frame.start_secs)
            case UserStartedSpeakingFrame():
                self._caller_speech.vad(True)
            case VADUserStoppedSpeakingFrame():
                self._caller_speech.vad(False)
                await self._push_response_time(self._response_time.caller_stopped(frame.stop_secs))
            case UserStoppedSpeakingFrame():
                self._caller_speech.vad(False)
            case UserMuteStartedFrame():
                self._caller_speech.mute()
            case EndProbeFrame():
                frame.arrived(self)
            case TTSSpeakFrame():
                self.say(frame.text, interruptible=False)
            case PersonaPlexHoldFrame() | PersonaPlexReleaseFrame():
                await self._hold_or_release(frame)
            case InterruptionFrame():
                self._call.speech.interrupt()
                # The context aggregator has ended the assistant turn. The model continues, so its
                # next words belong to a new turn.
                self._output.interrupt()
            case LLMContextFrame():
                await self._read_context(frame)
            case LLMUpdateSettingsFrame() if frame.service not in (None, self):
                return  # LLMService has pushed it on
        await self.push_frame(frame, direction)

    async def _push_input(self, pcm: Pcm) -> None:
        if not len(pcm):
            return
        if self._caller_speech.push(pcm):
            self._call.speech.interrupt()
        if self._caller_speech.speaking:
            self._delegator.hear_speech(pcm)
        if self._caller_speech.still_speaking():
            await self.push_frame(UserSpeakingFrame())  # the pipeline is not idle
        self._call.push_audio(pcm)

    # The call. Only the event task pushes the model's output, so that its frames stay in order.

    async def _follow_clock(self) -> None:
        while True:
            self._call.tick()
            await asyncio.sleep(_TICK_SECONDS)

    async def _follow_events(self) -> None:
        try:
            async for event in self._call.events():
                if isinstance(event, SessionFrame):
                    await self._push_output(event)
                else:
                    with logger.contextualize(session=event.session_id):
                        await self._handle_event(event)
        except Exception as error:
            await self._fail_call(as_personaplex_error(error))
        finally:
            self._call.close()  # its events have no consumer any more
            await self._end_turn()
            await self._push_metrics()

    async def _handle_event(self, event: Event) -> None:
        match event:
            case SessionStarted(persona, session_id):
                self._renew_holds()
                logger.info(f"{self}: session {session_id} started with voice {persona.voice}")
                self._requested.in_effect(persona)
                self._apply_facts()  # that have come since the session was opened
                await self._end_turn()
                await self._call_event_handler("on_session_started", persona)
            case SessionEnded(persona, session_id, error):
                logger.info(f"{self}: session {session_id} ended" + (f": {error}" if error else ""))
                if self._call.persona is None and error is not None:
                    await self._end_turn()
                    if not await self._open_with_less(error):
                        await self._fail_call(error)
                await self._call_event_handler("on_session_ended", persona, error)
            case PromptChanged(persona, session_id):
                self._facts_failures = 0
                logger.info(f"{self}: session {session_id} has a new prompt, voice {persona.voice}")
                self._requested.in_effect(persona)
                await self._call_event_handler("on_prompt_changed", persona)
            case PersonaRejected(persona, _, error):
                await self._reject_persona(
                    persona, error or SessionFailed("the session was closed")
                )
            case SpeechRejected(text, _, error):
                self._delegator.speech_rejected(text)
                await self._push_application_error(
                    f"a text of {len(text)} characters cannot be spoken: {error}", error
                )
            case SpeechStarted(speech, _):
                self._delegator.speech_started(speech)
                await self._call_event_handler("on_speech_started", speech)
            case SpeechEnded(speech, _):
                self._delegator.speech_ended(speech)
                if speech.state == "said":
                    await self._call_event_handler("on_speech_done", speech)
                else:
                    await self._call_event_handler("on_speech_cut", speech.text, speech.spoken)

    async def _push_output(self, model_frame: SessionFrame) -> None:
        self._delegator.push_output(model_frame)
        for frame in self._output.frames(model_frame, keep_turn=self._call.speech.speaking):
            await self.push_frame(frame)
        await self._push_response_time(self._response_time.agent(model_frame.pcm))
        if self._metrics_window.add(model_frame):
            await self._call_event_handler("on_late_frame", model_frame.timings)
        if self._metrics_window.frames >= _METRICS_FRAMES:
            await self._push_metrics()

    async def _push_response_time(self, seconds: float | None) -> None:
        if seconds is not None and self.metrics_enabled:
            await self.push_frame(MetricsFrame([response_metrics(self.name, seconds)]))

    async def _end_turn(self) -> None:
        for frame in self._output.end_turn():
            await self.push_frame(frame)

    async def _push_metrics(self) -> None:
        window, self._metrics_window = self._metrics_window, MetricsWindow()
        data: list[MetricsData] = []
        if not window.frames:
            return
        if self.metrics_enabled:
            data.append(window.metrics(self.name, self._call, self._output.backlog))
        if self.usage_metrics_enabled:
            data.append(window.usage(self.name))
        if data:
            await self.push_frame(MetricsFrame(data))

    async def _teardown(self) -> None:
        self._facts.close()
        await self._delegator.close()
        self._call.close()
        clock, self._clock_task = self._clock_task, None
        if clock is not None:
            await self.cancel_task(clock)
        events, self._event_task = self._event_task, None
        if events is not None:
            # It ends by itself, after the frames that end an open turn.
            await asyncio.wait({events}, timeout=_CLOSING_SECONDS)
            await self.cancel_task(events)
