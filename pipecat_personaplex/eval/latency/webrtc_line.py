"""A call over WebRTC, to a bot that takes offers at /api/offer."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from http.client import HTTPException
from typing import Any, Self

import numpy as np

from pipecat_personaplex.audio import Pcm, float_to_pcm16, pcm16_to_float
from pipecat_personaplex.errors import EngineUnreachable
from pipecat_personaplex.eval.latency.probe import Recorder
from pipecat_personaplex.eval.plugins import require_package

Negotiate = Callable[[dict[str, str]], Awaitable[dict[str, str]]]
"""From an offer (``sdp`` and ``type``) to the answer."""

_INSTALL = "pip install 'pipecat-personaplex[bots]'"
_TIMEOUT_SECONDS = 60.0
_MAX_WAITING_CHUNKS = 2


class WebRtcLine:
    """A call over WebRTC.

    Args:
        negotiate: Passes the offer to the bot; see ``over_http``.

    Raises:
        ConfigError: aiortc is not installed.
        EngineUnreachable: The bot does not answer (when the call is opened).
    """

    rate = 48_000

    def __init__(self, negotiate: Negotiate):
        self._aiortc: Any = require_package("the WebRTC transport", "aiortc", _INSTALL)
        self.recorder = Recorder(self.rate)
        self._negotiate = negotiate
        self._chunks: asyncio.Queue[Pcm] = asyncio.Queue()
        self._peer: Any = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        self._peer = self._aiortc.RTCPeerConnection()
        try:
            await self._connect()
        except BaseException:
            await self._peer.close()
            raise
        return self

    async def _connect(self) -> None:
        aiortc = self._aiortc
        self._peer.createDataChannel("rtvi-ai")  # Pipecat's bots expect the client's channel
        self._peer.addTrack(_make_track(aiortc, self._chunks, self.rate))

        @self._peer.on("track")  # type: ignore[untyped-decorator]
        def on_track(track: Any) -> None:
            if track.kind == "audio":
                self._reader = asyncio.create_task(self._read(track))

        await self._peer.setLocalDescription(await self._peer.createOffer())
        local = self._peer.localDescription
        answer = await self._negotiate({"sdp": local.sdp, "type": local.type})
        await self._peer.setRemoteDescription(
            aiortc.RTCSessionDescription(answer["sdp"], answer["type"])
        )

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        await self._peer.close()
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    async def send(self, chunk: Pcm) -> None:
        """Send 20 ms; drops older ones that the connection has not taken.

        Raises:
            EngineUnreachable: The connection is lost.
        """
        if self._peer.connectionState in ("failed", "closed"):
            raise EngineUnreachable("the WebRTC connection is lost")
        if self._peer.connectionState == "connected":
            while self._chunks.qsize() >= _MAX_WAITING_CHUNKS:
                self._chunks.get_nowait()
            self._chunks.put_nowait(chunk)

    async def _read(self, track: Any) -> None:
        with suppress(self._aiortc.mediastreams.MediaStreamError):
            while True:
                frame = await track.recv()
                channels = len(frame.layout.channels)
                samples = frame.to_ndarray().reshape(-1, channels).mean(axis=1)
                self.recorder.add(time.monotonic(), pcm16_to_float(samples.astype(np.int16)))


def _make_track(aiortc: Any, chunks: asyncio.Queue[Pcm], rate: int) -> Any:
    """A track that sends each chunk as soon as it is there: the prober paces."""
    from av import AudioFrame

    class Microphone(aiortc.mediastreams.MediaStreamTrack):  # type: ignore[misc]
        kind = "audio"
        position = 0

        async def recv(self) -> AudioFrame:
            chunk = await chunks.get()
            samples = float_to_pcm16(chunk)[None]
            frame = AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = rate
            frame.pts, frame.time_base = self.position, Fraction(1, rate)
            self.position += len(chunk)
            return frame

    return Microphone()


def over_http(url: str, api_key: str | None = None) -> Negotiate:
    """Negotiate with a Pipecat bot at ``url``/api/offer, with the bot's key if it needs one."""
    address = f"{url.rstrip('/')}/api/offer"

    def post(offer: dict[str, str]) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        request = urllib.request.Request(address, json.dumps(offer).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                answer: dict[str, str] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            detail = error.read(200).decode(errors="replace")
            raise EngineUnreachable(f"{address} answers {error.code}: {detail}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise EngineUnreachable(f"{address} does not answer: {error}") from None

    async def negotiate(offer: dict[str, str]) -> dict[str, str]:
        return await asyncio.to_thread(post, offer)

    return negotiate


@asynccontextmanager
async def webrtc_echo() -> AsyncIterator[WebRtcLine]:
    """A call to an echo in this process: the floor of the transport, its codec included."""
    aiortc: Any = require_package("the WebRTC transport", "aiortc", _INSTALL)
    peer = aiortc.RTCPeerConnection()

    @peer.on("track")  # type: ignore[untyped-decorator]
    def on_track(track: Any) -> None:
        peer.addTrack(track)

    async def negotiate(offer: dict[str, str]) -> dict[str, str]:
        description = aiortc.RTCSessionDescription(offer["sdp"], offer["type"])
        await peer.setRemoteDescription(description)
        await peer.setLocalDescription(await peer.createAnswer())
        return {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}

    try:
        async with WebRtcLine(negotiate) as line:
            yield line
    finally:
        await peer.close()
