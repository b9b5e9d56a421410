"""Drives the delegation of one call: frames and events in, requests and speech out."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InterimTranscriptionFrame,
    LLMContextFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.aggregators.llm_context import LLMContext, standard_message_text

from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import SessionFrame, Speech
from pipecat_personaplex.service.backend_link import (
    BackendError,
    BackendEvent,
    BackendIdle,
    BackendLink,
    BackendOutput,
    BackendToolCall,
    BackendUnavailable,
    transcript_request,
)
from pipecat_personaplex.service.delegation import PAIRING_INSTRUCTION, Delegation
from pipecat_personaplex.service.delegation_actions import (
    Action,
    Cut,
    Fail,
    HoldFor,
    Reattach,
    Release,
    Remember,
    Say,
    Send,
)
from pipecat_personaplex.service.delegation_state import DelegationState, DelegationTimes
from pipecat_personaplex.service.hold import Router, word_router
from pipecat_personaplex.service.speech import RequestedText

if TYPE_CHECKING:
    from pipecat_personaplex.service.llm import PersonaPlexLLMService

# Frames of padding after which the agent's own words count as over.
_GAP_FRAMES = 3


class Delegator:
    """Drives the delegation of one call: frames and events in, requests and speech out.

    All decisions are ``DelegationState``'s.

    Args:
        front: The service.
        config: What the user has set.
    """

    def __init__(self, front: PersonaPlexLLMService, config: Delegation):
        self._front = front
        self._config = config
        self._state = DelegationState(
            DelegationTimes(
                config.hold,
                tuple(config.filler),
                config.filler_after,
                config.timeout_secs,
                config.sorry,
                config.unanswered,
            )
        )
        self._link = BackendLink(front, config.backend, self._on_backend, self._on_lost)
        self._context: LLMContext | None = None
        self._delegated: Sequence[object] = ()  # messages that the backend has, by identity
        self._requested_before = False
        self._texts: dict[int, RequestedText] = {}
        self._keys: dict[Speech, int] = {}
        self._padding = 0
        self._agent_speaks = False
        self._errands: asyncio.Queue[Send | Fail | Reattach] = asyncio.Queue()
        self._requests: dict[int, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._router: Router | None = None
        self._open = False

    async def open(self) -> None:
        """Attach to the backend."""
        if self._config.worker is not None:
            self._config.worker.llm.append_system_instruction(PAIRING_INSTRUCTION)
        if self._config.hold.mode == "when":
            self._front.pipeline_worker.add_observer(_Transcripts(self._on_transcript))
        self._open = True
        await self._link.open()
        self._tasks.append(self._front.create_task(self._run_errands(), f"{self._front}::errands"))

    async def close(self) -> None:
        """Let go of the backend; does nothing the second time."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        await self._link.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await self._front.cancel_task(task)

    # What happens in the pipeline.

    def process(self, frame: Frame) -> None:
        """Take a frame that the service processes."""
        match frame:
            case UserStartedSpeakingFrame():
                self._do(self._state.caller_started(_now()))
            case UserStoppedSpeakingFrame():
                self._do(self._state.caller_stopped(_now()))
            case LLMContextFrame():
                self._take_context(frame.context)

    def push_output(self, frame: SessionFrame) -> None:
        """Take a frame of the model, to know when the agent speaks words of its own."""
        own = bool(frame.text) and not self._front.speaks_given_text
        self._padding = 0 if own else self._padding + 1
        speaks = self._padding < _GAP_FRAMES if self._agent_speaks else own
        if speaks != self._agent_speaks:
            self._agent_speaks = speaks
            self._do(self._state.agent_speaks(_now(), speaks))

    def speech_started(self, speech: Speech) -> None:
        """A text has begun."""
        key = self._key(speech)
        if key is not None:
            self._do(self._state.speech_started(_now(), key))

    def speech_ended(self, speech: Speech) -> None:
        """A text was spoken, or cut."""
        key = self._key(speech)
        if key is not None:
            self._forget(key)
            words = speech.text.split()[: speech.spoken]
            self._do(self._state.speech_ended(_now(), key, words, speech.state == "said"))

    def speech_rejected(self, text: str) -> None:
        """The session refused a text."""
        key = next((key for key, each in self._texts.items() if each.text == text), None)
        if key is not None:
            self._forget(key)
            self._do(self._state.speech_ended(_now(), key, [], False))

    def session_started(self) -> None:
        """The session can hold from now on."""
        self._do(self._state.agent_speaks(_now(), self._agent_speaks))

    def _key(self, speech: Speech) -> int | None:
        if speech in self._keys:
            return self._keys[speech]
        taken = set(self._keys.values())
        for key, text in self._texts.items():
            if text.text == speech.text and key not in taken:
                self._keys[speech] = key
                return key
        return None

    def _forget(self, key: int) -> None:
        self._texts.pop(key, None)
        self._keys = {speech: each for speech, each in self._keys.items() if each != key}

    def _take_context(self, context: LLMContext) -> None:
        self._context = context
        known = {id(message) for message in self._delegated}
        new = [message for message in context.get_messages() if id(message) not in known]
        asked = [
            standard_message_text(message)
            for message in new
            if isinstance(message, dict) and message.get("role") == "user"
        ]
        if not any(asked):
            return
        self._route(" ".join(asked))
        self._do(self._state.turn_ended(_now()))

    # What the backend reports.

    async def _on_backend(self, event: BackendEvent) -> None:
        match event:
            case BackendToolCall():
                await self._front.push_frame(event.to_frame())
                ended = event.phase == "cancelled" or (event.phase == "result" and event.is_final)
                self._do(self._state.tool(_now(), event.tool_call_id, ended=ended))
            case BackendOutput() if event.prefers_spoken:
                logger.debug(f"{self._front}: to be spoken: {event.text!r}")
                self._do(self._state.spoken(_now(), event.text))
            case BackendOutput() if not event.is_thought:
                self._do(self._state.noted(_now(), event.text))
            case BackendIdle():
                self._do(self._state.idle(_now()))
            case BackendError():
                self._do(self._state.failed(_now(), event.error))

    def _on_lost(self, reason: str) -> None:
        self._do(self._state.detached(_now(), reason))

    # The router of Hold.when.

    def _on_transcript(self, text: str) -> None:
        self._route(text)

    def _route(self, text: str) -> None:
        if self._config.hold.mode != "when" or not self._open:
            return
        try:
            answer = self._find_router()(text)
        except Exception as error:
            logger.warning(f"{self._front}: the router of Hold.when raised {error!r}; no hold")
            return
        if inspect.isawaitable(answer):
            self._tasks.append(
                self._front.create_task(self._await_router(answer), f"{self._front}::router")
            )
        elif answer:
            self._do(self._state.accepted(_now()))

    async def _await_router(self, answer: Awaitable[bool]) -> None:
        try:
            if await answer:
                self._do(self._state.accepted(_now()))
        except Exception as error:
            logger.warning(f"{self._front}: the router of Hold.when raised {error!r}; no hold")

    def _find_router(self) -> Router:
        if self._config.hold.router is not None:
            return self._config.hold.router
        if self._router is None:
            self._router = word_router(self._tool_texts())
        return self._router

    def _tool_texts(self) -> list[str]:
        worker = self._config.worker
        tools: Any = worker.context.tools if worker is not None else None
        schemas = getattr(tools, "standard_tools", [])
        return [f"{schema.name.replace('_', ' ')} {schema.description}" for schema in schemas]

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
                self._steer(lambda: self._front.hold(seconds))
            case Release():
                self._steer(self._front.release)
            case Say(key, text):
                requested = RequestedText(text, "pause", True)
                self._texts[key] = requested
                self._front.speak(requested)
            case Cut(keys):
                self._front.cut([self._texts[key] for key in keys if key in self._texts])
            case Remember(text):
                self._front.set_fact(f"note:{text}", text)
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
        try:
            idle = await self._link.send(self._requests.pop(send.request))
        except BackendUnavailable as error:
            self._do(self._state.send_failed(_now(), send.request, str(error)))
        else:
            self._do(self._state.sent(_now(), send.request, idle))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._state.deadline
        self._timer = None
        if deadline is not None:
            # At least a little later: a deadline that stays in the past must not spin.
            delay = max(deadline - _now(), 0.005)
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._do(self._state.tick(_now()))


class _Transcripts(BaseObserver):
    """Sees transcripts that the user aggregator does not pass on, interim ones included."""

    def __init__(self, on_text: Callable[[str], None]):
        super().__init__()
        self._on_text = on_text

    async def on_push_frame(self, data: FramePushed) -> None:
        if data.first_push and isinstance(
            data.frame, InterimTranscriptionFrame | TranscriptionFrame
        ):
            self._on_text(data.frame.text)


def _now() -> float:
    return time.monotonic()
