"""Clients of both endpoints, written from the protocols; they share no code with the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import sphn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.protocol.session_frames import ServerFrame

Pcm16 = npt.NDArray[np.int16]
Sound = npt.NDArray[np.float32]
FRAME = 1920
_OPTIONS: dict[str, Any] = {
    "max_size": None,
    "compression": None,
    "proxy": None,
    "close_timeout": 1,
}
SILENCE = np.zeros(FRAME, dtype=np.int16)


def frames_of(samples: Pcm16) -> Pcm16:
    """Cut samples into frames [n, 1920]; the last is padded with zeros."""
    return np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)


def loud(level: int) -> Pcm16:
    """A frame of one constant value, which identifies it."""
    return np.full(FRAME, level, dtype=np.int16)


def tone(frames: int, hertz: float = 300) -> Sound:
    """A sine as frames [n, 1920]."""
    time = np.arange(frames * FRAME) / 24_000
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32).reshape(-1, FRAME)


@dataclass
class SessionClient:
    """A connection to ``/v1/session``."""

    ws: ClientConnection
    hello: dict[str, Any]
    sequence: int = 0
    secret: str = ""
    id: str = ""

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, **options: Any) -> AsyncIterator[SessionClient]:
        async with connect(f"{url}/v1/session", **_OPTIONS | options) as ws:
            yield cls(ws, json.loads(await ws.recv()))

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, **message: Any) -> AsyncIterator[SessionClient]:
        """Connect and open a session; yields when it is ready."""
        async with cls.connect(url) as client:
            await client.open(**message)
            assert await client.message() == {"type": "ready"}
            yield client

    async def say(self, kind: str, **message: Any) -> None:
        await self.ws.send(json.dumps({"type": kind} | message))

    async def open(self, voice: str = "NATF2", **message: Any) -> str:
        await self.say("open", voice=voice, **message)
        opened = await self.message()
        assert opened["type"] == "opened", opened
        self.secret, self.id = opened["session"], opened["id"]
        return self.secret

    async def resume(self, secret: str, next_frame: int) -> dict[str, Any]:
        await self.say("resume", session=secret, next_frame=next_frame)
        resumed = await self.message()
        if resumed["type"] == "resumed":
            self.sequence = resumed["next_frame"]
        return resumed

    async def push(self, audio: Pcm16 | bytes = SILENCE) -> None:
        data = audio if isinstance(audio, bytes) else audio.astype("<i2").tobytes()
        await self.ws.send(b"\x01" + self.sequence.to_bytes(4, "big") + data)
        self.sequence += 1

    async def message(self) -> dict[str, Any]:
        text = await self.ws.recv()
        assert isinstance(text, str), text[:40]
        message: dict[str, Any] = json.loads(text)
        return message

    async def packet(self) -> bytes:
        data = await self.ws.recv()
        assert isinstance(data, bytes), data
        return data

    async def frame(self) -> ServerFrame:
        return ServerFrame.unpack(await self.packet())

    async def converse(self, samples: Pcm16) -> list[ServerFrame]:
        """Send all frames, at most two ahead of the responses; return the responses."""
        frames, answers = frames_of(samples), list[ServerFrame]()
        for index in range(len(frames) + 2):
            if index < len(frames):
                await self.push(frames[index])
            if index >= 2:
                answers.append(await self.frame())
        return answers

    async def ended(self) -> tuple[dict[str, Any], int]:
        """Wait for the close; return the last message and the close code."""
        last: dict[str, Any] = {}
        try:
            while True:
                data = await self.ws.recv()
                if isinstance(data, str):
                    last = json.loads(data)
        except ConnectionClosed:
            return last, self.ws.close_code or 0


async def cut(client: SessionClient) -> None:
    """Break the connection without a close frame."""
    client.ws.transport.abort()
    await client.ws.wait_closed()


async def finish(client: SessionClient) -> None:
    """Close the session and wait for the server's confirmation."""
    await client.say("close")
    assert await client.ended() == ({"type": "closed"}, 1000)


@dataclass
class ChatClient:
    """A connection to ``/api/chat``, as from a client of NVIDIA's server."""

    ws: ClientConnection
    heard: list[Sound] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._writer = sphn.OpusStreamWriter(24_000)
        self._reader = sphn.OpusStreamReader(24_000)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, **query: Any) -> AsyncIterator[ChatClient]:
        async with connect(f"{url}/api/chat?{urlencode(query)}", **_OPTIONS) as ws:
            yield cls(ws)

    async def handshake(self) -> None:
        assert await self.ws.recv() == b"\x00"

    def encode(self, pcm: Sound) -> bytes:
        pages: bytes = self._writer.append_pcm(pcm)
        return pages

    async def push(self, pcm: Sound) -> None:
        await self.ws.send(b"\x01" + self.encode(pcm))

    async def hear(self, samples: int) -> None:
        """Receive messages until this many samples have arrived."""
        while sum(map(len, self.heard)) < samples:
            message = await self.ws.recv()
            assert isinstance(message, bytes)
            if message[0] == 1:
                self.heard.append(self._reader.append_bytes(message[1:]))
            elif message[0] == 2:
                self.texts.append(message[1:].decode())
            else:
                raise AssertionError(message)

    async def converse(self, pcm: Sequence[Sound]) -> None:
        """Send all frames, at most ten ahead of the responses."""
        for index, frame in enumerate(pcm):
            await self.push(frame)
            await self.hear((index - 10) * FRAME)
        await self.hear(len(pcm) * FRAME)

    @property
    def sound(self) -> Sound:
        return np.concatenate(self.heard)

    async def ended(self) -> tuple[str, int]:
        """Wait for the close; return the error message and the close code."""
        error = ""
        try:
            while True:
                message = await self.ws.recv()
                assert isinstance(message, bytes)
                if message[0] == 5:
                    error = message[1:].decode()
        except ConnectionClosed:
            return error, self.ws.close_code or 0
