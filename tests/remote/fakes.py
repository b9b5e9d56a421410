"""A server that follows PROTOCOL.md or violates it, for faults that the real one cannot produce."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.interface import FrameTimings
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame

Script = Callable[[ServerConnection], Awaitable[None]]
WAIT = 20.0
_HISTORY = (2, 3)  # first byte of the parts of a call that has moved here
_CODES = np.arange(CODEBOOKS, dtype=np.int64)


def output_frame(sequence: int, audio: bytes, text: str = "") -> bytes:
    """Build an output frame."""
    timings = FrameTimings(1.0, 2.0)
    return ServerFrame(sequence, text, sequence, _CODES, _CODES, timings, audio).pack()


@dataclass
class Conversation:
    """A session: what the server received and sent."""

    received: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    opening: dict[str, Any] = field(default_factory=dict)
    closed: bool = False


class FakeServer:
    """Echoes the audio of every session, for the length of a ``with``.

    Args:
        script: Handles each connection instead.
        talk: Handles each connection instead once its session is open.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        talk: Script | None = None,
        max_sessions: int = 4,
        voices: tuple[str, ...] = ("NATF2",),
        key: str | None = None,
        tls: Any = None,
    ):
        self.max_sessions = max_sessions
        self.voices = list(voices)
        self.draining = False
        self.resume_seconds = 3.0
        self.public_id = ""
        self.features: list[str] | None = None  # None as from a server that is older than the field
        self.status: int | None = None
        self.body = "no"
        self.location = ""
        self.drop = 0  # input frames to drop from now on
        self.dropped = 0
        self.resumed = 0
        self.silent = False  # stores output frames without sending them
        self.requests: list[Request] = []
        self.conversations: dict[str, Conversation] = {}
        self._script = script
        self._talk = talk or self._converse
        self._key = key
        self._tls = tls
        self._port = 0
        self._up = threading.Event()

    def __enter__(self) -> FakeServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._up.wait(WAIT)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # already stopped
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._up.clear()

    def start(self) -> None:
        self.__enter__()

    def stop(self) -> None:
        self.__exit__()

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def open(self) -> list[Conversation]:
        return [each for each in self.conversations.values() if not each.closed]

    @property
    def connected(self) -> int:
        return len(self._server.connections)

    def cut(self) -> None:
        """Break every connection without a close frame."""

        def abort() -> None:
            for connection in list(self._server.connections):
                connection.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # The same port each time: a restarted server has the same URL.
        async with serve(
            self._connected,
            "127.0.0.1",
            self._port,
            process_request=self._request,
            ssl=self._tls,
            close_timeout=0.1,
            ping_interval=None,
        ) as self._server:
            self._port = self._server.sockets[0].getsockname()[1]
            self._up.set()
            await self._stop.wait()
            for connection in list(self._server.connections):
                connection.transport.abort()

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        status = self.status
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            status = 401
        if status is None:
            return None
        response = connection.respond(HTTPStatus(status), self.body)
        if self.location:
            response.headers["Location"] = self.location
        return response

    async def _connected(self, websocket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await (self._script or self._greet)(websocket)

    async def _greet(self, websocket: ServerConnection) -> None:
        await say(
            websocket,
            type="hello",
            version=1,
            model="fake",
            voices=self.voices,
            sessions=len(self.open),
            max_sessions=self.max_sessions,
            draining=self.draining,
            **({} if self.features is None else {"features": self.features}),
        )
        first = json.loads(await websocket.recv())
        if first["type"] == "resume":
            await self._resume(websocket, first)
        elif self.draining:
            await refuse(websocket, "engine_draining", 1001)
        elif len(self.open) >= self.max_sessions:
            await refuse(websocket, "engine_full", 1013, max_sessions=self.max_sessions)
        else:
            secret = f"secret-{len(self.conversations)}"
            self.conversations[secret] = Conversation(opening=first)
            opened = {
                "session": secret,
                "resume_seconds": self.resume_seconds,
                "id": self.public_id,
            }
            await say(websocket, type="opened", **opened)
            websocket.fake = self.conversations[secret]  # type: ignore[attr-defined]
            await self._talk(websocket)

    async def _resume(self, websocket: ServerConnection, message: dict[str, Any]) -> None:
        conversation = self.conversations.get(message["session"])
        if conversation is None or conversation.closed:
            await refuse(websocket, "session_lost", 1008)
            return
        await say(websocket, type="resumed", next_frame=len(conversation.received), ready=True)
        self.resumed += 1
        for sent in conversation.outputs[message["next_frame"] :]:
            await websocket.send(sent)
        await self._listen(websocket, conversation)

    async def _converse(self, websocket: ServerConnection) -> None:
        await say(websocket, type="ready")
        await self._listen(websocket, websocket.fake)  # type: ignore[attr-defined]

    async def _listen(self, websocket: ServerConnection, conversation: Conversation) -> None:
        async for message in websocket:
            if isinstance(message, bytes) and message[0] in _HISTORY:
                continue
            if isinstance(message, bytes):
                await self._receive(websocket, conversation, ClientFrame.unpack(message))
                continue
            request = json.loads(message)
            conversation.messages.append(request)
            if request["type"] == "close":
                conversation.closed = True
                await say(websocket, type="closed")
                return
            if request["type"] == "stats":
                counts = {"frames": len(conversation.outputs), "dropped_frames": self.dropped}
                await say(websocket, type="stats", late_frames=0, queued_frames=0, **counts)

    async def _receive(
        self, websocket: ServerConnection, conversation: Conversation, frame: ClientFrame
    ) -> None:
        assert frame.sequence == len(conversation.received), "a gap, or a repeated frame"
        conversation.received.append(frame.sequence)
        if self.drop:
            self.drop -= 1
            self.dropped += 1
            return
        sent = output_frame(len(conversation.outputs), frame.audio, f" {len(conversation.outputs)}")
        conversation.outputs.append(sent)
        if not self.silent:
            await websocket.send(sent)


async def say(websocket: ServerConnection, **message: Any) -> None:
    await websocket.send(json.dumps(message))


async def refuse(websocket: ServerConnection, code: str, close: int, **details: Any) -> None:
    await say(
        websocket, type="error", code=code, message=f"it is {code}", fatal=True, details=details
    )
    await websocket.close(close)
