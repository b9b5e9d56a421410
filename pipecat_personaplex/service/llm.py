"""The Pipecat service: PersonaPlex replaces speech-to-text, language model and text-to-speech."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Set
from dataclasses import asdict, replace
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
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
)
from pipecat.metrics.metrics import MetricsData
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.llm_service import LLMService, LLMWithBackendRole
from pipecat.services.settings import LLMSettings
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.utils.errors import ErrorCategory

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import ConfigError, PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import EngineLike, SessionFrame
from pipecat_personaplex.service.call import (
    Call,
    Event,
    PersonaRejected,
    SessionEnded,
    SessionStarted,
    SpeechRejected,
)
from pipecat_personaplex.service.context import has_tools, system_prompt_of
from pipecat_personaplex.service.errors import as_personaplex_error, category_of
from pipecat_personaplex.service.frames import AgentOutput, CallerInput
from pipecat_personaplex.service.metrics import MetricsWindow
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.settings import (
    PERSONA_FIELDS,
    SAMPLING_FIELDS,
    PersonaPlexLLMSettings,
)

_TICK_SECONDS = 0.02
# About 5 s: every metrics frame becomes a message to the client.
_METRICS_FRAMES = 62
# For the event task to push its last frames once the call is closed.
_CLOSING_SECONDS = 1.0
# On EndFrame, the extra wait for forced speech whose session is still pending or has stalled.
_STALL_SECONDS = 10.0


class PersonaPlexLLMService(LLMService):
    """PersonaPlex as one Pipecat service: the caller's audio in, the agent's audio and words out.

    The model listens and speaks at the same time and decides by itself when to do either. It
    needs no VAD, no turn detection and no interruptions: an ``InterruptionFrame`` passes through
    and the model continues.

    On ``EndFrame``, the service waits until forced speech has been spoken and its turn has ended,
    at most 10 s beyond its estimated duration. On ``CancelFrame``, it does not wait.

    The role belongs in ``Settings``. If ``Settings`` has no role, the system message of the first
    context becomes one. This changes the persona, which needs a second slot for a moment. Nothing
    else of a context reaches the model: no history, and no tools, as it calls no functions.

    Event handlers available:

    - on_session_started(service, persona): The persona receives the caller's audio from now on.
    - on_session_ended(service, persona, error): The session of this persona has ended; error is
      None if it was closed on purpose.
    - on_late_frame(service, timings): A frame was received later than 80 ms after its input.

    Args:
        engine: A started engine, shared by every call of the process.
        settings: Settings that differ from the defaults.
        greeting: A sentence with which the agent opens the call. The words are forced; the model
            generates the sound.
        playout: The meter after ``transport.output()``. If given, silent audio is dropped while
            too much audio waits to be played.
        noise_gate_dbfs: RMS level below which the agent's audio becomes digital silence, so that
            listeners can tell when it has stopped speaking; None for no gate.
        clock: Returns monotonic seconds; paces the input.
        **kwargs: Passed to ``LLMService``.

    Raises:
        ConfigError: ``engine`` is not an engine, or a setting has an invalid value.

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
            turns = ExternalUserTurnStrategies(enable_interruptions=False)
            user, assistant = LLMContextAggregatorPair(
                LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=turns)
            )
            pipeline = Pipeline(
                [transport.input(), user, agent, transport.output(), playout, assistant]
            )
            runner = WorkerRunner()
            await runner.add_workers(PipelineWorker(pipeline))
            await runner.run()
    """

    Settings = PersonaPlexLLMSettings
    _settings: PersonaPlexLLMSettings

    def __init__(
        self,
        engine: EngineLike,
        *,
        settings: PersonaPlexLLMSettings | None = None,
        greeting: str | None = None,
        playout: PlayoutMeter | None = None,
        noise_gate_dbfs: float | None = -50.0,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ):
        if not callable(getattr(engine, "open_session", None)):
            raise ConfigError(
                f"engine must be a started Engine or RemoteEngine, not {type(engine).__name__}; "
                "Engine.load(...) makes one"
            )
        complete = self.Settings.defaults()
        given = {} if settings is None else complete.apply_update(settings)
        # Validate now, not when the first caller connects.
        complete.persona([])
        complete.sampling()
        super().__init__(settings=complete, **kwargs)
        self._engine = engine
        self._call = Call(engine, clock)
        self._input = CallerInput()
        self._output = AgentOutput(playout, noise_gate_dbfs)
        self._metrics_window = MetricsWindow()
        # The requested settings of the active and of the pending session, to restore them if a
        # persona is rejected. The prompts are without what LLMService appends: it does so again.
        self._requested: dict[Persona, PersonaPlexLLMSettings] = {}
        self._started = False
        self._context_seen = self._tools_seen = False
        self._clock_task: asyncio.Task[None] | None = None
        self._event_task: asyncio.Task[None] | None = None
        self._warn_without_effect(given.keys())
        if greeting:
            self._call.say(greeting)
        for name in ("on_session_started", "on_session_ended", "on_late_frame"):
            self._register_event_handler(name)

    @property
    def session_id(self) -> str | None:
        """The public id of the current session, as in every log line about it.

        None if no session is open.
        """
        return self._call.session_id

    def can_generate_metrics(self) -> bool:
        """Return True; see ``PersonaPlexMetricsData``."""
        return True

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        """Ask the aggregators for no turn detection and no interruptions."""
        return LLMServiceMetadataFrame(
            service_name=self.name,
            user_turn_strategies=ExternalUserTurnStrategies(enable_interruptions=False),
        )

    def llm_with_backend_role_objection(self, role: LLMWithBackendRole) -> str:
        """Decline both roles: the model calls no tools and does not respond to text."""
        return (
            f"{type(self).__name__} cannot be an LLMWithBackend {role}: its model calls no tools "
            "and does not respond to text. Use the service by itself, and put the facts that the "
            "agent must know into Settings(system_instruction=...)"
        )

    def register_function(self, function_name: str | None, handler: Any, **options: Any) -> None:
        """Register a function and warn that the model never calls it."""
        self._warn_of_tools()
        super().register_function(function_name, handler, **options)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Use the pipeline's output sample rate; each input frame carries its own."""
        await super().setup(setup)
        self._output.set_rate(setup.audio_out_sample_rate)

    async def start(self, frame: StartFrame) -> None:
        """Open the session; its prompt is computed in the background."""
        await super().start(frame)
        self._started = True
        self._event_task = self.create_task(self._follow_events(), f"{self}::events")
        self._clock_task = self.create_task(self._follow_clock(), f"{self}::clock")
        try:
            self._open_session()
        except Exception as error:  # Pipecat would only log it, and the call would be silent
            await self._fail_call(as_personaplex_error(error))

    async def stop(self, frame: EndFrame) -> None:
        """Wait for forced speech, then close the session."""
        await super().stop(frame)
        if not await self._call.wait_for_speech(_STALL_SECONDS):
            self._warn("the call ends before all forced speech was spoken: the model stalled")
        await self._teardown()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close the session without waiting for forced speech."""
        await super().cancel(frame)
        await self._teardown()

    async def cleanup(self) -> None:
        """Close the session if it is still open."""
        await self._teardown()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass audio, speech requests and settings to the call, and push every frame on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._call.push_audio(self._input.pcm(frame))
        elif isinstance(frame, TTSSpeakFrame):
            self._call.say(frame.text)
        elif isinstance(frame, InterruptionFrame):
            # The context aggregator has ended the assistant turn. The model continues, so its next
            # words belong to a new turn.
            self._output.interrupt()
        elif isinstance(frame, LLMContextFrame):
            await self._read_context(frame)
        elif isinstance(frame, LLMUpdateSettingsFrame) and frame.service not in (None, self):
            return  # LLMService has pushed it on
        await self.push_frame(frame, direction)

    # Settings.

    def _open_session(self) -> None:
        persona = self._settings.persona(self._engine.voices)
        self._call.open(persona, self._settings.sampling())
        requested = self.Settings(
            voice=self._settings.voice, system_instruction=self._base_system_instruction
        )
        current = {p: s for p, s in self._requested.items() if p == self._call.persona}
        self._requested = {**current, persona: requested}

    async def _update_settings(  # type: ignore[override]
        self, delta: LLMSettings
    ) -> dict[str, Any]:
        prompt = self._base_system_instruction
        changed = await super()._update_settings(delta)
        self._warn_without_effect(changed.keys())
        if not self._started:
            return changed
        try:
            if changed.keys() & PERSONA_FIELDS:
                self._open_session()
            elif changed.keys() & SAMPLING_FIELDS:
                self._call.update(self._settings.sampling())
        except Exception as error:
            if "system_instruction" in changed:
                changed["system_instruction"] = prompt  # without what LLMService appended
            return await self._restore_settings(changed, as_personaplex_error(error))
        return changed

    async def _restore_settings(
        self, changed: dict[str, Any], error: PersonaPlexError
    ) -> dict[str, Any]:
        """Undo changes that the engine refused; returns the changes that remain."""
        refused = changed.keys() & (PERSONA_FIELDS | SAMPLING_FIELDS)
        await super()._update_settings(self.Settings(**{name: changed[name] for name in refused}))
        if self._call.persona is None:
            await self._fail_call(error)
        else:
            await self._push_application_error(f"the settings were not changed: {error}", error)
        return {name: old for name, old in changed.items() if name not in refused}

    async def _restore_persona(self, error: PersonaPlexError) -> None:
        """Set the settings back to those of the active session."""
        persona, sampling = self._call.persona, self._call.sampling
        if persona is not None and sampling is not None:
            await super()._update_settings(replace(self._requested[persona], **asdict(sampling)))
        await self._push_application_error(f"the persona was not changed: {error}", error)

    def _warn_without_effect(self, names: Set[str]) -> None:
        without_effect = names - PERSONA_FIELDS - SAMPLING_FIELDS
        if without_effect:
            self._warn(f"settings without effect: {', '.join(sorted(without_effect))}")

    def _warn_of_tools(self) -> None:
        if not self._tools_seen:
            self._warn("tools have no effect, this model calls no functions")
        self._tools_seen = True

    def _warn(self, message: str) -> None:
        logger.bind(session=self.session_id or "").warning(f"{self}: {message}")

    async def _read_context(self, frame: LLMContextFrame) -> None:
        if frame.speculation:
            # LLMService holds back the response to a speculative context until the user's turn is
            # over. This model responds to no particular turn and must not be silenced.
            self._speculation_gate.begin_speculation(False)
        if has_tools(frame.context):
            self._warn_of_tools()
        first, self._context_seen = not self._context_seen, True
        # Later contexts are the aggregators' record of what the model has already heard.
        if first and self._settings.system_instruction is None:
            role = system_prompt_of(frame.context)
            if role:
                await self._update_settings(self.Settings(system_instruction=role))

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

    async def _handle_event(self, event: Event) -> None:
        match event:
            case SessionStarted(persona, session_id):
                logger.info(f"{self}: session {session_id} started with voice {persona.voice}")
                await self._end_turn()
                await self._call_event_handler("on_session_started", persona)
            case SessionEnded(persona, session_id, error):
                logger.info(f"{self}: session {session_id} ended" + (f": {error}" if error else ""))
                if self._call.persona is None and error is not None:
                    await self._end_turn()
                    await self._fail_call(error)
                await self._call_event_handler("on_session_ended", persona, error)
            case PersonaRejected(_, _, error):
                await self._restore_persona(error or SessionFailed("the session was closed"))
            case SpeechRejected(text, _, error):
                await self._push_application_error(f"{text!r} cannot be spoken: {error}", error)

    async def _push_output(self, model_frame: SessionFrame) -> None:
        for frame in self._output.frames(model_frame):
            await self.push_frame(frame)
        if self._metrics_window.add(model_frame):
            await self._call_event_handler("on_late_frame", model_frame.timings)
        if self._metrics_window.frames >= _METRICS_FRAMES:
            await self._push_metrics()

    async def _end_turn(self) -> None:
        for frame in self._output.end_turn():
            await self.push_frame(frame)

    async def _push_metrics(self) -> None:
        window, self._metrics_window = self._metrics_window, MetricsWindow()
        data: list[MetricsData] = []
        if self.metrics_enabled:
            data.append(window.metrics(self.name, self._call, self._output.backlog))
        if self.usage_metrics_enabled:
            data.append(window.usage(self.name))
        if data:
            await self.push_frame(MetricsFrame(data))

    # Errors, and the end of the call.

    async def _push_application_error(self, message: str, error: PersonaPlexError) -> None:
        """Report an error after which the call continues, so the service stays usable."""
        await self.push_error(message, error, category=ErrorCategory.APPLICATION)

    async def _fail_call(self, error: PersonaPlexError) -> None:
        """Report that this call cannot continue."""
        await self.push_error(str(error), error, force_treat_as_permanent=True)

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        return category_of(exception)

    async def _teardown(self) -> None:
        self._call.close()
        clock, self._clock_task = self._clock_task, None
        if clock is not None:
            await self.cancel_task(clock)
        events, self._event_task = self._event_task, None
        if events is not None:
            # It ends by itself, after the frames that end an open turn.
            await asyncio.wait({events}, timeout=_CLOSING_SECONDS)
            await self.cancel_task(events)
