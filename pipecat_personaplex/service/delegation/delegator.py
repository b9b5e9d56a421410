"""Drives the delegation of one call: frames and events in, requests and speech out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    UserMuteStartedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext, standard_message_text

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, PersonaPlexError
from pipecat_personaplex.interface import EngineLike, Feature, SessionFrame, Speech
from pipecat_personaplex.service.delegation.backend_link import (
    BackendError,
    BackendEvent,
    BackendIdle,
    BackendLink,
    BackendOutput,
    BackendToolCall,
    BackendUnavailable,
    transcript_request,
)
from pipecat_personaplex.service.delegation.backend_tools import BackendTools
from pipecat_personaplex.service.delegation.call_follower import CallFollower
from pipecat_personaplex.service.delegation.call_memory import CallMemory
from pipecat_personaplex.service.delegation.delegation import PAIRING_INSTRUCTION, Delegation
from pipecat_personaplex.service.delegation.delegation_actions import (
    Action,
    Cut,
    Fail,
    HoldFor,
    Reattach,
    Release,
    Remember,
    Say,
    Send,
    Warn,
)
from pipecat_personaplex.service.delegation.delegation_state import DelegationState
from pipecat_personaplex.service.delegation.delegation_times import DelegationTimes
from pipecat_personaplex.service.delegation.turn_router import TurnRouter
from pipecat_personaplex.service.speech import RequestedText
from pipecat_personaplex.words import spoken_words

if TYPE_CHECKING:
    from pipecat_personaplex.service.llm import PersonaPlexLLMService

_NEEDED: frozenset[Feature] = frozenset(("say", "hold", "prompt"))

NO_TRANSCRIPT_SECONDS = 30.0
"""Seconds of the caller's speech without a transcript after which a warning is logged."""

# Frames of padding after which the agent's own words count as over.
_GAP_FRAMES = 3
# Requests that a backend has not taken and that the next one repeats.
_MAX_UNSENT = 20


class Delegator(CallFollower):
    """Drives the delegation of one call: frames and events in, requests and speech out.

    All decisions are ``DelegationState``'s.

    Args:
        front: The service.
        config: What the user has set.
        engine: The engine of the service.

    Attributes:
        state: What the delegation does now.

    Raises:
        ConfigError: The engine cannot hold, speak given words and replace prompts.
    """

    def __init__(self, front: PersonaPlexLLMService, config: Delegation, engine: EngineLike):
        cure = "use an Engine, or the server that `personaplex serve` starts"
        require_features(engine.features, "delegation=", cure)
        self._front = front
        self._config = config
        self.state: DelegationState = DelegationState(
            DelegationTimes(
                config.hold,
                tuple(config.filler),
                config.filler_after,
                config.timeout_secs,
                config.sorry,
                config.unanswered,
                config.transcript_secs,
            )
        )
        self._link = BackendLink(front, config.backend, self._on_backend, self._on_lost)
        self._tools = BackendTools(config.worker, front.warn)
        self._router = TurnRouter(front, config.hold, lambda: self._tools.texts, self._on_accepted)
        self._memory = CallMemory(front, config)
        self._frames = 0  # of the model, since the last summary
        self._unwritten_seconds = 0.0  # of the caller's speech before the first transcript
        self._context: LLMContext | None = None
        self._delegated: Sequence[object] = ()  # messages that the backend has, by identity
        self._requested_before = False
        self._texts: dict[int, RequestedText] = {}
        self._keys: dict[Speech, int] = {}
        self._padding = 0
        self._agent_speaks = False
        self._errands: asyncio.Queue[Send | Fail | Reattach] = asyncio.Queue()
        self._requests: dict[int, str] = {}
        self._unsent: deque[str] = deque(maxlen=_MAX_UNSENT)
        self._warned_of_speculation = False
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    async def open(self) -> None:
        """Attach to the backend."""
        if self._config.worker is not None:
            self._config.worker.llm.append_system_instruction(PAIRING_INSTRUCTION)
        self._router.open()
        self._open = True
        await self._link.open()
        self._tasks.append(self._front.create_task(self._run_errands(), f"{self._front}::errands"))

    async def close(self) -> None:
        """Let go of the backend; does nothing the second time."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        await self._router.close()
        await self._memory.close()
        await self._link.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await self._front.cancel_task(task)

    async def ground(self, open_session: Callable[[], Awaitable[None]]) -> None:
        """Open the session, with the facts for the start of the call if they come in time."""
        if self._config.ground is None:
            await open_session()
            return

        async def run() -> None:
            await self._memory.ground()
            if self._open:  # the caller may have hung up meanwhile
                await open_session()

        self._tasks.append(self._front.create_task(run(), f"{self._front}::grounded"))

    def register_function(self, name: str | None, handler: Any, options: dict[str, Any]) -> None:
        """Have the backend call a function; see ``LLMService.register_function``."""
        self._tools.register(name, handler, options)

    # What happens in the pipeline.

    def process(self, frame: Frame) -> None:
        """Take a frame that the service processes."""
        match frame:
            case UserStartedSpeakingFrame():
                self._router.new_turn()
                self._do(self.state.caller_started(_now()))
            case UserStoppedSpeakingFrame() | UserMuteStartedFrame():
                self._do(self.state.caller_stopped(_now()))
            case LLMContextFrame():
                if frame.speculation and not self._warned_of_speculation:
                    self._warned_of_speculation = True
                    self._front.warn(
                        "a turn that may not be over is sent to the backend: eager turn strategies "
                        "are not supported with a Delegation"
                    )
                self._take_context(frame.context)

    def hear_speech(self, pcm: Pcm) -> None:
        """Take audio in which the caller speaks, to notice that no transcript follows.

        Args:
            pcm: float32 [n] mono 24 kHz.
        """
        if self._context is not None or self._unwritten_seconds > NO_TRANSCRIPT_SECONDS:
            return
        self._unwritten_seconds += len(pcm) / SAMPLE_RATE
        if self._unwritten_seconds > NO_TRANSCRIPT_SECONDS:
            self._front.warn(
                f"the backend has heard nothing: {NO_TRANSCRIPT_SECONDS:g} s of speech and no "
                "transcript; put a speech-to-text service and a user aggregator before the agent"
            )

    def push_output(self, frame: SessionFrame) -> None:
        """Take a frame of the model, to know when the agent speaks words of its own."""
        self._sum_up_in_time()
        own = bool(frame.text) and not self._front.speaks_given_text
        self._padding = 0 if own else self._padding + 1
        speaks = self._padding < _GAP_FRAMES if self._agent_speaks else own
        if speaks != self._agent_speaks:
            self._agent_speaks = speaks
            self._do(self.state.agent_speaks(_now(), speaks))

    def speech_started(self, speech: Speech) -> None:
        """A text has begun."""
        key = self._key(speech)
        if key is not None:
            self._do(self.state.speech_started(_now(), key))

    def speech_ended(self, speech: Speech) -> None:
        """A text was spoken, or cut."""
        key = self._key(speech)
        if key is not None:
            self._forget(key)
            words = speech.text.split()[: speech.spoken]
            self._do(self.state.speech_ended(_now(), key, words, speech.state == "said"))

    def speech_rejected(self, text: str) -> None:
        """The session refused a text."""
        key = next((key for key, each in self._texts.items() if each.text == text), None)
        if key is not None:
            self._forget(key)
            self._do(self.state.speech_ended(_now(), key, [], False))

    def _key(self, speech: Speech) -> int | None:
        if speech in self._keys:
            return self._keys[speech]
        taken = set(self._keys.values())
        for key, text in self._texts.items():
            if spoken_words(text.text) == spoken_words(speech.text) and key not in taken:
                self._keys[speech] = key
                return key
        return None

    def _forget(self, key: int) -> None:
        self._texts.pop(key, None)
        self._keys = {speech: each for speech, each in self._keys.items() if each != key}

    def _sum_up_in_time(self) -> None:
        self._frames += 1
        seconds = self._config.summary_secs
        if seconds is not None and self._frames * FRAME_SECONDS >= seconds and self._context:
            self._frames = 0
            self._memory.sum_up(self._context)

    def _take_context(self, context: LLMContext) -> None:
        self._context = context
        self._tools.pass_on(context)
        known = {id(message) for message in self._delegated}
        new = [message for message in context.get_messages() if id(message) not in known]
        asked = [
            standard_message_text(message)
            for message in new
            if isinstance(message, dict) and message.get("role") == "user"
        ]
        if not any(asked):
            return
        accepted = self._router.accepts(" ".join(asked))
        self._do(self.state.turn_ended(_now(), accepted=accepted))

    # What the backend reports.

    async def _on_backend(self, event: BackendEvent) -> None:
        match event:
            case BackendToolCall():
                await self._front.push_frame(event.to_frame())
                ended = event.phase == "cancelled" or (event.phase == "result" and event.is_final)
                self._do(self.state.tool(_now(), event.tool_call_id, ended=ended))
            case BackendOutput() if event.prefers_spoken:
                logger.debug(f"{self._front}: to be spoken: {event.text!r}")
                self._do(self.state.spoken(_now(), event.text))
            case BackendOutput() if not event.is_thought:
                self._do(self.state.noted(_now(), event.text))
            case BackendIdle():
                works_on, filtered = self._link.works_on(), self._link.filters
                self._do(self.state.idle(_now(), works_on=works_on, filtered=filtered))
            case BackendError():
                self._do(self.state.failed(_now(), event.error))

    def _on_accepted(self) -> None:
        self._do(self.state.accepted(_now()))

    def _on_lost(self, reason: str) -> None:
        self._do(self.state.detached(_now(), reason))

    # What the state wants done.

    def _do(self, actions: list[Action]) -> None:
        if not self._open:
            return
        for action in actions:
            self._do_one(action)
        self._set_timer()

    def _do_one(self, action: Action) -> None:
        match action:
            case HoldFor(seconds):
                self._steer(lambda: self._front.hold_for_backend(seconds))
            case Release():
                self._steer(self._front.release_for_backend)
            case Say(key, text):
                requested = RequestedText(text, "pause", True)
                self._texts[key] = requested
                self._front.speak(requested)
            case Cut(keys):
                self._front.cut([self._texts[key] for key in keys if key in self._texts])
            case Remember(text):
                self._front.set_fact(f"note:{text}", text)
            case Warn(message):
                self._front.warn(message)
            case Send():
                self._requests[action.request] = self._request(action)
                self._errands.put_nowait(action)
            case Fail() | Reattach():
                self._errands.put_nowait(action)

    def _steer(self, steer: Callable[[], None]) -> None:
        try:
            steer()
        except PersonaPlexError as error:
            logger.debug(f"{self._front}: no hold: {error}")

    def _request(self, send: Send) -> str:
        if not send.transcript or self._context is None:
            return send.text
        messages = list(self._context.get_messages())
        known = {id(message) for message in self._delegated}
        new = [message for message in messages if id(message) not in known]
        self._delegated = messages
        first, self._requested_before = not self._requested_before, True
        request = transcript_request(new, first=first)
        return f"{send.text}\n\n{request}" if send.text else request

    async def _run_errands(self) -> None:
        """Do what takes time, in order."""
        while True:
            match await self._errands.get():
                case Send() as send:
                    await self._send(send)
                case Fail(message):
                    logger.warning(f"{self._front}: {message}")
                    await self._front.report_backend_error(message)
                case Reattach():
                    await self._link.attach_again()

    async def _send(self, send: Send) -> None:
        # What the backend did not take is part of the next request: it may be an order.
        self._unsent.append(self._requests.pop(send.request))
        try:
            idle = await self._link.send("\n\n".join(self._unsent))
            self._unsent.clear()
        except BackendUnavailable as error:
            self._do(self.state.send_failed(_now(), send.request, str(error)))
        else:
            self._do(self.state.sent(_now(), send.request, idle))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.state.deadline
        self._timer = None
        if deadline is not None:
            # At least a little later: a deadline that stays in the past must not spin.
            delay = max(deadline - _now(), 0.005)
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._do(self.state.tick(_now()))


def require_features(features: frozenset[Feature], what: str, cure: str) -> None:
    """Check that an engine's sessions can speak the answers of a backend.

    Args:
        features: What the sessions can do.
        what: What needs this, for the error.
        cure: What to do, for the error.

    Raises:
        ConfigError: They cannot.
    """
    missing = _NEEDED - features
    if missing:
        raise ConfigError(
            f"{what} needs an engine that supports {', '.join(sorted(_NEEDED))}, and this one does "
            f"not support {', '.join(sorted(missing))}: {cure}"
        )


def _now() -> float:
    return time.monotonic()
