"""A caller of a bot in this process: a microphone in real time, and what is played to it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pipecat.frames.frames import Frame, InputAudioRawFrame, StartFrame, TranscriptionFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIServerMessageFrame
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from bots.host import BotCall
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings

CHUNK = SAMPLE_RATE // 50
Samples = npt.NDArray[np.int16]


class Microphone(FrameProcessor):
    """Sends audio at a microphone's pace once the pipeline has started, then silence."""

    def __init__(self, pcm: Samples, hang_up: Callable[[], Any]):
        super().__init__()
        self._pcm = pcm
        self._hang_up = hang_up
        self._speaking: asyncio.Task[None] | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._speaking = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        start, index = loop.time(), 0
        while not await self._hang_up():
            chunk = self._pcm[index * CHUNK : (index + 1) * CHUNK]
            chunk = np.pad(chunk, (0, CHUNK - len(chunk)))
            await self.push_frame(InputAudioRawFrame(chunk.tobytes(), SAMPLE_RATE, 1))
            index += 1
            # The pace of a microphone; not a wait for an event.
            await asyncio.sleep(start + index / 50 - loop.time())


class Loudspeaker(BaseOutputTransport):
    """Plays at once, and collects what the pipeline sends to the caller's page."""

    def __init__(self) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_end_silence_secs=0))
        self.messages: list[Any] = []
        self.audio: list[Samples] = []

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, RTVIServerMessageFrame):
            self.messages.append(frame.data)
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: Any) -> bool:
        self.audio.append(np.frombuffer(frame.audio, np.int16))
        return True


class Caller(BaseTransport):
    """A transport whose caller speaks, and hangs up on a condition.

    Args:
        pcm: What the caller says, int16 [n] at 24 kHz; silence follows.
        done: Polled 50 times a second; the caller hangs up once it is true.
    """

    def __init__(self, pcm: Samples, done: Callable[[], object]):
        super().__init__()
        self._register_event_handler("on_client_disconnected")
        self._done = done
        self.microphone = Microphone(pcm, self._hang_up)
        self.loudspeaker = Loudspeaker()

    async def _hang_up(self) -> bool:
        if not self._done():
            return False
        await self._call_event_handler("on_client_disconnected", None)
        return True

    def input(self) -> FrameProcessor:
        return self.microphone

    def output(self) -> FrameProcessor:
        return self.loudspeaker

    def call(self, engine: EngineLike, records: Path, prompt: str = "You sell.") -> BotCall:
        """This caller's call of a bot, with the options that bots share."""
        return BotCall(
            engine,
            self,
            PersonaPlexLLMSettings(voice=engine.voices[0], system_instruction=prompt),
            argparse.Namespace(
                records=str(records), greeting=None, prompt=prompt, transport="webrtc"
            ),
            rate=SAMPLE_RATE,
            idle_seconds=None,
            running=set(),
        )


class ScriptedStt(FrameProcessor):
    """A speech-to-text service that transcribes given sentences.

    Args:
        script: Sentences, each with the condition under which it has been spoken. A number stands
            for so many seconds of the call's audio.

    Attributes:
        finished: When the last sentence was transcribed, by the event loop's clock; None before.
    """

    def __init__(self, script: list[tuple[float | Callable[[], object], str]]):
        super().__init__()
        self._script = list(script)
        self._seconds = 0.0
        self.finished: float | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._seconds += frame.num_frames / frame.sample_rate
            if self._script and self._spoken(self._script[0][0]):
                _, text = self._script.pop(0)
                await self.push_frame(TranscriptionFrame(text, "caller", "now", finalized=True))
                if not self._script:
                    self.finished = asyncio.get_running_loop().time()

    def _spoken(self, when: float | Callable[[], object]) -> bool:
        return bool(when()) if callable(when) else self._seconds >= when
