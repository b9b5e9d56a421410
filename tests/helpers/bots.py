"""A bot as a real process, and a WebRTC caller that connects to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamTrack

from tests.helpers.forking import run, start

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_AUDIO_SECONDS = 15.0
# Variables of the developer's own environment that would change what a bot does.
_FOREIGN = re.compile(r"PERSONAPLEX_|PIPECAT_|DAILY_|TWILIO_|DEEPGRAM_|HF_")


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return inherited | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | variables


def run_bot(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a bot that exits by itself."""
    return run(module, arguments, environment(**variables), timeout=_START_SECONDS)


class BotProcess:
    """A bot that serves on a free port of 127.0.0.1 while its ``with`` block runs.

    Args:
        module: Its module.
        arguments: Its arguments.
        fresh: Whether it needs an interpreter of its own, because its imports, its start or its end
            are what is tested.
        variables: Environment variables.
    """

    serving_line = "Uvicorn running on"  # printed once it serves
    start_seconds = _START_SECONDS

    def __init__(self, module: str, *arguments: str, fresh: bool = False, **variables: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._lines: list[str] = []
        self._serving = threading.Event()
        self._module = module
        self._arguments = ["--host", "127.0.0.1", "--port", str(self.port), *arguments]
        self._fresh = fresh
        self._tracer: list[str] = []  # a command that starts the process
        self._environment = environment(**variables)

    def __enter__(self) -> BotProcess:
        self._process = start(
            self._module,
            self._arguments,
            self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            fresh=self._fresh,
            tracer=self._tracer,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        served = self._serving.wait(self.start_seconds)
        if not served or self._process.poll() is not None:
            self.stop()
            raise AssertionError(f"the bot did not start:\n{self.log}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is not None:
            print(self.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All output so far, standard output and standard error."""
        return "".join(self._lines)

    def stop(self) -> bool:
        """Send SIGTERM; returns whether the process ended without SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
            terminated = True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            terminated = False
        self._reader.join(_STOP_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return terminated

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if self.serving_line in line:
                self._serving.set()
        self._serving.set()  # the process has ended


class Messages:
    """RTVI messages between a caller and the bot, over the call's data channel."""

    def __init__(self, channel: RTCDataChannel):
        self._channel = channel
        self._open = asyncio.Event()
        self._arrived = asyncio.Event()
        self.received: list[dict[str, Any]] = []
        channel.on("open", self._open.set)
        channel.on("message", self._receive)

    def _receive(self, message: str) -> None:
        self.received.append(json.loads(message))
        self._arrived.set()

    async def send(self, kind: str, identifier: str, data: Any = None) -> None:
        """Send an RTVI message; waits until the channel is open."""
        async with asyncio.timeout(_AUDIO_SECONDS):
            await self._open.wait()
        message = {"label": "rtvi-ai", "type": kind, "id": identifier, "data": data}
        self._channel.send(json.dumps(message))

    async def until(self, accept: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait for a message."""
        async with asyncio.timeout(_AUDIO_SECONDS):
            while not (found := [message for message in self.received if accept(message)]):
                self._arrived.clear()
                await self._arrived.wait()
        return found[0]


@asynccontextmanager
async def webrtc_caller(
    messages: list[Messages] | None = None,
) -> AsyncIterator[tuple[RTCPeerConnection, dict[str, str]]]:
    """A caller with a silent microphone, and the offer that it posts to ``/api/offer``.

    Args:
        messages: Gets the ``Messages`` of this call, if given.
    """
    peer = RTCPeerConnection()
    channel = peer.createDataChannel("rtvi-ai")
    if messages is not None:
        messages.append(Messages(channel))
    peer.addTrack(AudioStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    try:
        yield peer, {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
    finally:
        await peer.close()


async def connect_caller(peer: RTCPeerConnection, answer: dict[str, str]) -> MediaStreamTrack:
    """Connect with the bot's answer; returns the track with the agent's audio."""
    audio: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()

    @peer.on("track")
    def on_track(track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            audio.set_result(track)

    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
    return await asyncio.wait_for(audio, _AUDIO_SECONDS)


async def receive_audio(
    peer: RTCPeerConnection, answer: dict[str, str], frames: int = 1
) -> npt.NDArray[np.int16]:
    """Connect with the bot's answer and record the agent's first frames of 20 ms."""
    track = await connect_caller(peer, answer)
    async with asyncio.timeout(_AUDIO_SECONDS):
        recorded: list[Any] = [await track.recv() for _ in range(frames)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in recorded])
