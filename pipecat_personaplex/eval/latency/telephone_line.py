"""A call over Twilio's Media Streams: this side plays Twilio."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.errors import ConfigError, EngineUnreachable
from pipecat_personaplex.eval.latency.mulaw import decode_mulaw, encode_mulaw
from pipecat_personaplex.eval.latency.probe import CHUNK_SECONDS, Recorder

_STREAM, _CALL, _ACCOUNT = "MZ" + "0" * 32, "CA" + "0" * 32, "AC" + "0" * 32


class TelephoneLine:
    """A call to a bot's WebSocket for Twilio.

    Args:
        url: Its address, such as ``ws://localhost:7860/ws``.

    Raises:
        ConfigError: The URL is not valid (when the call is opened).
        EngineUnreachable: Nothing answers there (when the call is opened).
    """

    rate = 8_000

    def __init__(self, url: str):
        self.recorder = Recorder(self.rate)
        self._url = url
        self._sent = 0
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect, and send what Twilio sends first."""
        try:
            self._socket = await connect(self._url, proxy=None)
        except InvalidURI as error:
            raise ConfigError(f"{self._url} is not an address of a WebSocket: {error}") from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise EngineUnreachable(f"{self._url} does not answer: {error}") from None
        self._reader = asyncio.create_task(self._read(self._socket))
        await self._send({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        format_ = {"encoding": "audio/x-mulaw", "sampleRate": self.rate, "channels": 1}
        start = {
            "accountSid": _ACCOUNT,
            "streamSid": _STREAM,
            "callSid": _CALL,
            "tracks": ["inbound"],
            "mediaFormat": format_,
            "customParameters": {},
        }
        await self._send({"event": "start", "streamSid": _STREAM, "start": start})
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        assert self._socket is not None and self._reader is not None
        with suppress(ConnectionClosed):
            await self._send({"event": "stop", "streamSid": _STREAM, "stop": {"callSid": _CALL}})
        await self._socket.close()
        await self._reader

    async def send(self, chunk: Pcm) -> None:
        """Send 20 ms.

        Raises:
            EngineUnreachable: The bot has hung up.
        """
        media = {
            "track": "inbound",
            "chunk": str(self._sent + 1),
            "timestamp": str(round(self._sent * CHUNK_SECONDS * 1e3)),
            "payload": base64.b64encode(encode_mulaw(chunk)).decode(),
        }
        self._sent += 1
        try:
            await self._send({"event": "media", "streamSid": _STREAM, "media": media})
        except ConnectionClosed as error:
            raise EngineUnreachable(f"{self._url} has hung up: {error}") from None

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._socket is not None
        await self._socket.send(json.dumps(message))

    async def _read(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for text in socket:
                message = json.loads(text)
                if message.get("event") == "media":
                    pcm = decode_mulaw(base64.b64decode(message["media"]["payload"]))
                    self.recorder.add(time.monotonic(), pcm)


@asynccontextmanager
async def telephone_echo() -> AsyncIterator[TelephoneLine]:
    """A call to an echo on this machine: the floor of the transport."""

    async def echo(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            async for text in socket:
                message = json.loads(text)
                if message["event"] == "media":
                    payload = {"payload": message["media"]["payload"]}
                    reply = {"event": "media", "streamSid": _STREAM, "media": payload}
                    await socket.send(json.dumps(reply))

    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with TelephoneLine(f"ws://127.0.0.1:{port}") as line:
            yield line
