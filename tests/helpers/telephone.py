"""Twilio's side of a call: Media Streams messages over a WebSocket, in real time."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

RATE = 8_000
CHUNK_SECONDS = 0.02
ACCOUNT = "AC" + "0" * 32
TOKEN = "0123456789abcdef"
PUBLIC = "bot.example.test"
CREDENTIALS = {"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN}
OPTIONS = ("-t", "twilio", "-x", PUBLIC)
_numbers = itertools.count(1)


def to_mulaw(samples: np.ndarray) -> bytes:
    """Encode int16 samples as G.711 mu-law."""
    pcm = np.clip(samples.astype(np.int32), -32_635, 32_635)
    magnitude = np.abs(pcm) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(pcm < 0, 0x80, 0)
    return (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8).tobytes()


def from_mulaw(data: bytes) -> np.ndarray:
    """Decode G.711 mu-law to int16 samples."""
    code = ~np.frombuffer(data, dtype=np.uint8)
    magnitude = (((code & 0x0F).astype(np.int32) << 3) + 132) << ((code >> 4) & 0x07)
    return np.where(code & 0x80, 132 - magnitude, magnitude - 132).astype(np.int16)


def signed(url: str, form: dict[str, str] | None = None) -> dict[str, str]:
    """The header that Twilio sends with a request to this public URL."""
    return {"X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(url, form or {})}


class TwilioCall:
    """One call, open while its ``async with`` block runs.

    Args:
        url: URL of the bot's WebSocket.
        address: Address of the client as a proxy reports it.
    """

    def __init__(self, url: str, address: str = "127.0.0.1"):
        number = next(_numbers)
        self._headers = signed(f"wss://{PUBLIC}/ws") | {"X-Forwarded-For": address}
        self.stream_sid = f"MZ{number:032x}"
        self.call_sid = f"CA{number:032x}"
        self.received: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self._audio = bytearray()
        self._url = url
        self._sequence = itertools.count(1)

    async def __aenter__(self) -> TwilioCall:
        self.socket = await connect(
            self._url,
            proxy=None,
            ping_interval=None,
            additional_headers=self._headers,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.socket.close()
        await asyncio.wait_for(self._reader, 10)

    @property
    def audio(self) -> np.ndarray:
        """The agent's audio so far, int16 at 8 kHz."""
        return from_mulaw(bytes(self._audio))

    async def send(self, event: str, **content: object) -> None:
        message: dict[str, object] = {"event": event, "sequenceNumber": str(next(self._sequence))}
        await self.socket.send(json.dumps(message | {"streamSid": self.stream_sid} | content))

    async def connected(self) -> None:
        await self.socket.send(
            json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        )

    async def start(self) -> None:
        await self.send(
            "start",
            start={
                "accountSid": ACCOUNT,
                "streamSid": self.stream_sid,
                "callSid": self.call_sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1},
                "customParameters": {},
            },
        )

    async def answer(self) -> None:
        """Send Twilio's handshake."""
        await self.connected()
        await self.start()

    async def media(self, payload: bytes, index: int = 0) -> None:
        await self.send(
            "media",
            media={
                "track": "inbound",
                "chunk": str(index + 1),
                "timestamp": str(round(index * CHUNK_SECONDS * 1000)),
                "payload": base64.b64encode(payload).decode(),
            },
        )

    async def talk(self, samples: np.ndarray) -> None:
        """Send 20 ms of audio every 20 ms; ends early if the bot hangs up."""
        begun = time.monotonic()
        with suppress(ConnectionClosed):
            for index, chunk in enumerate(_chunks(to_mulaw(samples))):
                due = begun + CHUNK_SECONDS * (index + 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self.media(chunk, index)

    async def stop(self) -> None:
        """Send ``stop`` and close the connection, as Twilio does when the caller hangs up."""
        await self.send("stop", stop={"accountSid": ACCOUNT, "callSid": self.call_sid})
        await self.socket.close()

    def cut(self) -> None:
        """Abort the connection without a message or closing handshake."""
        self.socket.transport.abort()

    async def close_code(self) -> int | None:
        """Wait until the bot closes the connection; returns the close code."""
        await asyncio.wait_for(asyncio.shield(self._reader), 20)
        return self.socket.close_code

    async def heard(self, seconds: float) -> None:
        """Wait until that many seconds of the agent's audio have arrived."""
        async with asyncio.timeout(20):
            # Polling is enough: the test needs the amount, not the moment.
            while len(self._audio) < seconds * RATE:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self.socket:
                message = json.loads(text)
                self.received.append(message)
                if message["event"] == "media":
                    self.arrivals.append(time.monotonic())
                    self._audio += base64.b64decode(message["media"]["payload"])


def _chunks(data: bytes) -> Iterator[bytes]:
    size = round(RATE * CHUNK_SECONDS)
    return (data[start : start + size] for start in range(0, len(data), size))
