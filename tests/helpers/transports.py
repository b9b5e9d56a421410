"""A transport without a network: Pipecat's own input and output classes, driven by a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pipecat.frames.frames import (
    ClientConnectedFrame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

Heard = Callable[[float, bytes], object]


class FakeInput(BaseInputTransport):
    """The transport's input."""

    def __init__(self, transport: FakeTransport, params: TransportParams):
        super().__init__(params)
        self._transport = transport

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._transport.ready.set()


class _Output(BaseOutputTransport):
    """Accepts audio at playback speed, like a sound card that buffers ``ahead`` seconds."""

    def __init__(self, heard: Heard, params: TransportParams, ahead: float):
        super().__init__(params)
        self._heard = heard
        self._ahead = ahead
        self._played_until = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        now = time.monotonic()
        self._heard(now, frame.audio)
        self._played_until = max(self._played_until, now) + frame.num_frames / frame.sample_rate
        await asyncio.sleep(max(0.0, self._played_until - self._ahead - now))
        return True


class FakeTransport(BaseTransport):
    """A transport with one caller and the events that all of Pipecat's transports have.

    Args:
        params: Parameters of the transport that this one replaces.
        heard: Called with the time and the audio of each chunk that is played to the caller.
        input_class: Class of the input; the service knows some transports by its name.
    """

    def __init__(
        self, params: TransportParams, heard: Heard, input_class: type[FakeInput] = FakeInput
    ):
        super().__init__()
        self.ready = asyncio.Event()
        self.people = {"local": {}, "caller": {}}  # by id, as in a Daily room
        self._in = input_class(self, params)
        self._out = _Output(heard, params, ahead=0.04)
        self._register_event_handler("on_client_connected")
        self._register_event_handler("on_client_disconnected")
        self._register_event_handler("on_error")

    def input(self) -> FakeInput:
        return self._in

    def output(self) -> _Output:
        return self._out

    async def say(self, pcm: bytes, rate: int) -> None:
        await self._in.push_audio_frame(InputAudioRawFrame(pcm, rate, 1))

    async def connect(self) -> None:
        await self._call_event_handler("on_client_connected", self)
        await self._in.push_frame(ClientConnectedFrame())

    def participants(self) -> dict[str, dict[str, str]]:
        return self.people

    async def hang_up(self, person: str = "caller") -> None:
        self.people.pop(person)
        await self._call_event_handler("on_client_disconnected", {"id": person})

    async def fail(self, error: str) -> None:
        await self._call_event_handler("on_error", error)
