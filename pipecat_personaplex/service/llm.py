"""The Pipecat service: PersonaPlex in place of speech-to-text, language model and speech."""

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
    SpeechCut,
    SpeechRejected,
)
from pipecat_personaplex.service.errors import as_personaplex_error, category_of
from pipecat_personaplex.service.frames import (
    AgentOutput,
    CallerInput,
    brings_tools,
    system_prompt_of,
)
from pipecat_personaplex.service.metrics import MetricsWindow
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.settings import (
    PERSONA_FIELDS,
    SAMPLING_FIELDS,
    PersonaPlexLLMSettings,
)

_TICK_SECONDS = 0.02
# Every metrics frame becomes a message to the client, so figures are gathered for about 5 s.
_METRICS_FRAMES = 62
# For the last frames to be pushed once a call is closed; nothing in them waits for anything.
_CLOSING_SECONDS = 1.0
# How much longer than they can take the last words are waited for: for a session that is still
# being prepared, or a model that comes to a halt.
_STALL_SECONDS = 10.0


class PersonaPlexLLMService(LLMService):
    """PersonaPlex as one Pipecat service: the caller's audio in, the agent's audio and words out.

    The model listens and speaks at the same time and decides by itself when to do either. So
    there is no VAD, no turn detection and no interruption: an ``InterruptionFrame`` passes
    through and the model goes on.

    An ``EndFrame`` ends the call once words that were forced have been said and the turn they are
    in is over; should they not come, 10 s after the latest that they could have been. Nothing else
    is waited for, and on a ``CancelFrame`` not even that.

    The role belongs into ``Settings``. The system message of the first context is taken where
    there is none, as a change of persona: it needs a second slot for a moment. Nothing else of a
    context reaches the model: no history, and no tools, for it calls no functions.

    Event handlers available:

    - on_session_started(service, persona): The persona answers the caller from now on.
    - on_session_ended(service, persona, error): It no longer does; error is None if on purpose.
    - on_late_frame(service, timings): A frame took longer than the 80 ms there are.

    Args:
        engine: A started engine, shared by every call of the process.
        settings: What differs from the defaults.
        greeting: A sentence that the agent opens the call with. The words are forced; the sound
            is the model's own.
        playout: The meter behind ``transport.output()``; with it, silence is dropped while too
            much audio waits to be played.
        noise_gate_dbfs: RMS level below which the agent's audio becomes digital silence, so that
            listeners can tell that it has stopped speaking; None leaves the audio alone.
        clock: Monotonic seconds, by which input is paced.
        **kwargs: For ``LLMService``.

    Raises:
        ConfigError: The engine is none, or a setting has a value that cannot be.
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
        # What cannot be shows here, and not with the first caller.
        complete.persona([])
        complete.sampling()
        super().__init__(settings=complete, **kwargs)
        self._warn_idle(given.keys())
        self._engine = engine
        self._call = Call(engine, clock)
        self._input = CallerInput()
        self._output = AgentOutput(playout, noise_gate_dbfs)
        self._figures = MetricsWindow()
        # What was asked of the session that answers, and of one that is to take over from it. The
        # prompts are without what LLMService puts behind them: it would do so again.
        self._asked: dict[Persona, PersonaPlexLLMSettings] = {}
        self._started = False
        self._context_seen = self._tools_seen = False
        self._clock_task: asyncio.Task[None] | None = None
        self._event_task: asyncio.Task[None] | None = None
        if greeting:
            self._call.say(greeting)
        for name in ("on_session_started", "on_session_ended", "on_late_frame"):
            self._register_event_handler(name)

    def can_generate_metrics(self) -> bool:
        """It can; see ``PersonaPlexMetricsData``."""
        return True

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        """Ask the aggregators to leave turns alone and to interrupt nobody."""
        return LLMServiceMetadataFrame(
            service_name=self.name,
            user_turn_strategies=ExternalUserTurnStrategies(enable_interruptions=False),
        )

    def llm_with_backend_role_objection(self, role: LLMWithBackendRole) -> str:
        """Decline both roles: the model calls no tools, and answers no text."""
        return (
            f"{type(self).__name__} cannot be an LLMWithBackend {role}: its model calls no tools "
            "and answers no text. Use it by itself, and put what the agent must know into "
            "Settings(system_instruction=...)"
        )

    def register_function(self, function_name: str | None, handler: Any, **options: Any) -> None:
        """Warn that the model calls no functions; the handler is kept, and never called."""
        self._warn_of_tools()
        super().register_function(function_name, handler, **options)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Take the pipeline's output rate; input frames bring their own."""
        await super().setup(setup)
        self._output.set_rate(setup.audio_out_sample_rate)

    async def start(self, frame: StartFrame) -> None:
        """Open the session, whose prompt is computed in the background."""
        await super().start(frame)
        self._started = True
        self._event_task = self.create_task(self._follow_events(), f"{self}::events")
        self._clock_task = self.create_task(self._follow_clock(), f"{self}::clock")
        try:
            self._open()
        except Exception as error:  # Pipecat would log it and go on with a call that is silent
            await self._give_up(as_personaplex_error(error))

    async def stop(self, frame: EndFrame) -> None:
        """Have the agent finish what it was told to say, and close the session."""
        await super().stop(frame)
        await self._finish_speech()
        await self._teardown()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close the session, whatever is yet to be said."""
        await super().cancel(frame)
        await self._teardown()

    async def cleanup(self) -> None:
        """Close the session, if nothing else has."""
        await self._teardown()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Hear the caller, follow instructions, and push every frame on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._call.hear(self._input.pcm(frame))
        elif isinstance(frame, TTSSpeakFrame):
            self._call.say(frame.text)
        elif isinstance(frame, InterruptionFrame):
            # Whoever writes the conversation down has just ended the agent's turn. The model
            # knows of no interruption, so what it says next belongs to another.
            self._call.cut()
        elif isinstance(frame, LLMContextFrame):
            await self._take_context(frame)
        elif isinstance(frame, LLMUpdateSettingsFrame) and frame.service not in (None, self):
            return  # LLMService has pushed it on
        await self.push_frame(frame, direction)

    # Settings.

    def _open(self) -> None:
        persona = self._settings.persona(self._engine.voices)
        self._call.open(persona, self._settings.sampling())
        asked = self.Settings(
            voice=self._settings.voice, system_instruction=self._base_system_instruction
        )
        answering = {p: a for p, a in self._asked.items() if p == self._call.persona}
        self._asked = {**answering, persona: asked}

    async def _update_settings(  # type: ignore[override]
        self, delta: LLMSettings
    ) -> dict[str, Any]:
        prompt = self._base_system_instruction
        changed = await super()._update_settings(delta)
        self._warn_idle(changed.keys())
        if not self._started:
            return changed
        try:
            if changed.keys() & PERSONA_FIELDS:
                self._open()
            elif changed.keys() & SAMPLING_FIELDS:
                self._call.update(self._settings.sampling())
        except Exception as error:
            if "system_instruction" in changed:
                changed["system_instruction"] = prompt  # and not what LLMService has made of it
            return await self._refuse(changed, as_personaplex_error(error))
        return changed

    def _warn_idle(self, changed: Set[str]) -> None:
        idle = changed - PERSONA_FIELDS - SAMPLING_FIELDS
        if idle:
            logger.warning(f"{self}: settings without effect: {', '.join(sorted(idle))}")

    async def _refuse(self, changed: dict[str, Any], error: PersonaPlexError) -> dict[str, Any]:
        """Take back settings that the engine would not have; returns what is left changed."""
        handled = changed.keys() & (PERSONA_FIELDS | SAMPLING_FIELDS)
        await super()._update_settings(self.Settings(**{name: changed[name] for name in handled}))
        if self._call.persona is None:
            await self._give_up(error)
        else:
            # The call goes on as before, so this must not count against the service.
            await self.push_error(
                f"the settings were not changed: {error}", error, category=ErrorCategory.APPLICATION
            )
        return {name: old for name, old in changed.items() if name not in handled}

    async def _take_context(self, frame: LLMContextFrame) -> None:
        if frame.speculation:
            # Such a context makes LLMService hold back the response it expects until the user's
            # turn is over. This model answers no turn in particular, and is never to be silenced.
            self._speculation_gate.begin_speculation(False)
        if brings_tools(frame.context):
            self._warn_of_tools()
        first, self._context_seen = not self._context_seen, True
        # Later ones are what the aggregators wrote down, and the model has heard all that.
        if first and self._settings.system_instruction is None:
            role = system_prompt_of(frame.context)
            if role:
                await self._update_settings(self.Settings(system_instruction=role))

    def _warn_of_tools(self) -> None:
        if not self._tools_seen:
            logger.warning(f"{self}: tools have no effect, this model calls no functions")
        self._tools_seen = True

    # The call.

    async def _follow_clock(self) -> None:
        while True:
            self._call.tick()
            await asyncio.sleep(_TICK_SECONDS)

    # Only the task that runs this pushes what the model says, so that frames which belong together
    # stay together.

    async def _follow_events(self) -> None:
        try:
            async for event in self._call.events():
                await self._handle_event(event)
        except Exception as error:
            await self._give_up(as_personaplex_error(error))
        finally:
            self._call.close()  # nobody listens any more
            await self._end_turn()

    async def _handle_event(self, event: Event) -> None:
        match event:
            case SessionFrame():
                await self._deliver(event)
            case SessionStarted(persona):
                await self._end_turn()
                await self._call_event_handler("on_session_started", persona)
            case SessionEnded(persona, error):
                if self._call.persona is None and error is not None:
                    await self._end_turn()
                    await self._give_up(error)
                await self._call_event_handler("on_session_ended", persona, error)
            case PersonaRejected(_, error):
                await self._keep_persona(error or SessionFailed("the session was closed"))
            case SpeechRejected(text, error):
                await self.push_error(
                    f"{text!r} cannot be said: {error}", error, category=ErrorCategory.APPLICATION
                )
            case SpeechCut():
                await self._end_turn()

    async def _keep_persona(self, error: PersonaPlexError) -> None:
        persona, sampling = self._call.persona, self._call.sampling
        if persona is not None and sampling is not None:
            await super()._update_settings(replace(self._asked[persona], **asdict(sampling)))
        await self.push_error(
            f"the persona was not changed: {error}", error, category=ErrorCategory.APPLICATION
        )

    async def _deliver(self, answer: SessionFrame) -> None:
        for frame in self._output.frames(answer):
            await self.push_frame(frame)
        if self._figures.add(answer):
            await self._call_event_handler("on_late_frame", answer.timings)
        if self._figures.frames >= _METRICS_FRAMES:
            await self._push_metrics()

    async def _end_turn(self) -> None:
        for frame in self._output.end_turn():
            await self.push_frame(frame)

    async def _push_metrics(self) -> None:
        figures, self._figures = self._figures, MetricsWindow()
        data: list[MetricsData] = []
        if self.metrics_enabled:
            data.append(figures.metrics(self.name, self._call, self._output.backlog))
        if self.usage_metrics_enabled:
            data.append(figures.usage(self.name))
        if data:
            await self.push_frame(MetricsFrame(data))

    # The end.

    async def _give_up(self, error: PersonaPlexError) -> None:
        """Tell the host that this call cannot go on."""
        await self.push_error(str(error), error, force_treat_as_permanent=True)

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        return category_of(exception)

    async def _finish_speech(self) -> None:
        # By the real clock: whatever paces the input may have stopped with it.
        latest = time.monotonic() + self._call.speech_seconds + _STALL_SECONDS
        while self._call.speech_seconds:  # the clock task has the model go on meanwhile
            if time.monotonic() >= latest:
                logger.warning(f"{self}: the call ends before all was said, the model is too slow")
                break
            await asyncio.sleep(_TICK_SECONDS)

    async def _teardown(self) -> None:
        self._call.close()
        clock, self._clock_task = self._clock_task, None
        if clock is not None:
            await self.cancel_task(clock)
        events, self._event_task = self._event_task, None
        if events is not None:
            # It ends by itself, having closed what it has opened.
            await asyncio.wait({events}, timeout=_CLOSING_SECONDS)
            await self.cancel_task(events)
