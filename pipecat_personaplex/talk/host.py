"""What serves the page's calls: one model, its slots, and the calls in progress."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from loguru import logger
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.smallwebrtc.connection import IceServer, SmallWebRTCConnection
from starlette.websockets import WebSocket

from pipecat_personaplex.errors import (
    ConfigError,
    EngineFull,
    EngineStopped,
    PersonaPlexError,
    PromptTooLong,
    VoiceNotFound,
)
from pipecat_personaplex.talk.about import ModelInfo
from pipecat_personaplex.talk.conversation import CallRequest, Conversation
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.socket import socket_transport
from pipecat_personaplex.talk.webrtc import webrtc_transport

_MAX_PROMPT_CHARS = 20_000
# Somebody who hangs up and calls again must not be refused.
_FREEING_SECONDS = 3.0


@dataclass(frozen=True)
class TalkOptions:
    """What the page offers.

    Attributes:
        voice: The voice to begin with; None for the first one of the model.
        prompt: The role to begin with; None for the first one of the model.
        greeting: A sentence with which each call begins; empty for none.
        note: Why this model runs, if ``auto`` chose it; empty otherwise.
        ice_servers: STUN or TURN servers, for browsers in other networks.
        transcriber: Creates the service that writes down what the caller says.
        prebuilt: Whether Pipecat's own page is served too, at ``/client/``.
    """

    voice: str | None = None
    prompt: str | None = None
    greeting: str = ""
    note: str = ""
    ice_servers: tuple[IceServer, ...] = ()
    transcriber: Callable[[], FrameProcessor] | None = None
    prebuilt: bool = False


@dataclass
class TalkHost:
    """The state of ``personaplex talk``; used on the event loop alone.

    Attributes:
        about: The model, as the page describes it.
        options: What the page offers.
        local: The loaded model; None until it is loaded.
        failure: Why the model cannot be loaded; empty if it can.
        opened: Whether a browser has opened the page.

    Example::

        host = TalkHost(describe_model("nano"), TalkOptions())
        app = create_app(host)
        host.local = LocalEngine("nano", EngineConfig())
        host.local.engine.start()
    """

    about: ModelInfo
    options: TalkOptions
    local: LocalEngine | None = None
    failure: str = ""
    opened: bool = False
    _calls: dict[str, Conversation] = field(default_factory=dict)
    _previews: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        """What the page shows before a call."""
        if self.failure:
            return "failed"
        if self.local is None:
            return "loading"
        return "ready" if self.local.engine.healthy else "failed"

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return len(self._calls)

    @property
    def _taken(self) -> int:
        """Slots that calls have, and the one of a preview: previews are spoken one at a time."""
        return self.calls + min(1, self._previews)

    def has_call(self, call_id: str) -> bool:
        """Whether a call with this id is in progress."""
        return call_id in self._calls

    async def preview(self, voice: str) -> bytes:
        """A sentence in this voice, as a WAV file; see ``LocalEngine.preview``."""
        local = self.require()
        self._previews += 1
        try:
            return await asyncio.to_thread(local.preview, voice)
        finally:
            self._previews -= 1

    @property
    def voice(self) -> str:
        """The voice to begin with; empty until the model is loaded."""
        if self.options.voice is not None:
            return self.options.voice
        return next(iter(self.require().engine.voices), "") if self.local is not None else ""

    @property
    def prompt(self) -> str:
        """The role to begin with."""
        if self.options.prompt is not None:
            return self.options.prompt
        return self.about.roles[0].prompt

    def require(self) -> LocalEngine:
        """The loaded model.

        Raises:
            EngineStopped: It is not loaded.
        """
        if self.local is None:
            raise EngineStopped(self.failure or "the model is still being loaded")
        return self.local

    def check(self, request: CallRequest) -> None:
        """Refuse a call that cannot be served, before a connection is built for it.

        Raises:
            EngineFull: Every slot is taken.
            PromptTooLong: The role is too long.
            VoiceNotFound: There is no such voice.
            ConfigError: A text is far too long.
        """
        local = self.require()
        if self._taken >= local.engine.max_sessions:
            raise EngineFull(local.engine.max_sessions)
        for text in (request.persona.text_prompt, request.greeting):
            if len(text) > _MAX_PROMPT_CHARS:
                raise ConfigError(f"a text has {len(text)} characters; {_MAX_PROMPT_CHARS} at most")
        if request.persona.voice not in local.engine.voices:
            raise VoiceNotFound(request.persona.voice, local.engine.voices)
        size = local.prompt_size(request.persona)
        if size.frames > size.limit:
            raise PromptTooLong(size.frames, size.limit)

    async def admit(self, request: CallRequest) -> None:
        """As ``check``, but wait a moment for a slot that a call or a preview is about to free."""
        local = self.require()
        deadline = time.monotonic() + _FREEING_SECONDS
        while self._taken >= local.engine.max_sessions and time.monotonic() < deadline:
            ending = any(conversation.ending for conversation in self._calls.values())
            if not ending and not self._previews:
                break
            await asyncio.sleep(0.05)
        self.check(request)

    def start_call(self, connection: SmallWebRTCConnection, request: CallRequest) -> None:
        """Talk over WebRTC, in a task of its own; see ``check`` for what is refused."""
        call_id = connection.pc_id
        conversation = self._begin(call_id, lambda: webrtc_transport(connection), request)

        async def talk() -> None:
            try:
                await self._run(conversation)
            finally:
                await connection.disconnect()  # type: ignore[no-untyped-call]

        task = asyncio.create_task(talk())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def talk_over(self, websocket: WebSocket, request: CallRequest) -> None:
        """Talk over a WebSocket until the call ends; see ``check`` for what is refused.

        The call takes its slot first. Then the page gets the message ``opened``.
        """
        call_id = secrets.token_hex(8)
        conversation = self._begin(call_id, lambda: socket_transport(websocket), request)
        try:
            await websocket.send_json({"opened": True})
        except BaseException:  # the page may have gone
            del self._calls[call_id]
            raise
        await self._run(conversation)

    def _begin(
        self, call_id: str, transport: Callable[[], BaseTransport], request: CallRequest
    ) -> Conversation:
        self.check(request)  # another call may have taken the last slot meanwhile
        engine, transcriber = self.require().engine, self.options.transcriber
        conversation = Conversation(engine, transport(), request, transcriber)
        self._calls[call_id] = conversation
        return conversation

    async def _run(self, conversation: Conversation) -> None:
        started = time.monotonic()
        reason = "the call failed"
        try:
            reason = await conversation.run()
        except PersonaPlexError as error:
            reason = str(error)
        except Exception:
            logger.exception("a call failed")
        finally:
            self._calls = {
                key: each for key, each in self._calls.items() if each is not conversation
            }
            logger.info("call ended after {:.1f} s: {}", time.monotonic() - started, reason)

    def rename_call(self, call_id: str, new_id: str) -> None:
        """Know a call whose connection was made anew by its new id; nothing if it has ended."""
        if (conversation := self._calls.pop(call_id, None)) is not None:
            self._calls[new_id] = conversation

    async def hang_up(self, pc_id: str) -> None:
        """End the call of this connection; unknown ones are ignored."""
        if (conversation := self._calls.get(pc_id)) is not None:
            await conversation.hang_up("the caller hung up")

    async def close(self) -> None:
        """End every call."""
        for conversation in list(self._calls.values()):
            await conversation.hang_up("the bot is stopping")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
