"""The drive-thru bot in this process: the transcript contains both sides of the call."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import Frame, InputAudioRawFrame, TranscriptionFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from bots.call_log import CallRecord, record_folder
from bots.drive_thru import speech_to_text, take_order
from bots.host import BotCall
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from tests.helpers.engines import FakeEngine

CHUNK = SAMPLE_RATE // 50
SECONDS = 4


class Microphone(FrameProcessor):
    """A caller that sends silence in real time."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)

    async def speak(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        silence = np.zeros(CHUNK, np.int16).tobytes()
        for index in range(SECONDS * 50):
            await self.push_frame(InputAudioRawFrame(silence, SAMPLE_RATE, 1))
            # The pace of a microphone; not a wait for an event.
            await asyncio.sleep(start + index / 50 - loop.time())


class Window(BaseTransport):
    """A transport with a ``Microphone`` and an output that plays at once."""

    def __init__(self) -> None:
        super().__init__()
        self._register_event_handler("on_client_disconnected")
        self.microphone = Microphone()
        params = TransportParams(audio_out_enabled=True, audio_out_end_silence_secs=0)
        self._output = Played(params)

    async def visit(self) -> None:
        """Speak for a while, then hang up."""
        await self.microphone.speak()
        await self._call_event_handler("on_client_disconnected", None)

    def input(self) -> Microphone:
        return self.microphone

    def output(self) -> FrameProcessor:
        return self._output


class Played(BaseOutputTransport):
    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: Any) -> bool:
        return True


class WritesOnce(FrameProcessor):
    """A speech-to-text service that transcribes one order."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._chunks += 1
            if self._chunks == 50:
                order = TranscriptionFrame("One spicy, please.", "caller", "now", finalized=True)
                await self.push_frame(order)


def record_in(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.iterdir()
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("with_stt", [True, False])
async def test_both_sides_are_in_the_transcript(tmp_path: Path, with_stt: bool) -> None:
    window = Window()
    with FakeEngine() as engine:
        engine.on_open = lambda session: session.pieces.extend([" Welcome", "!"])
        call = BotCall(
            engine,
            window,
            PersonaPlexLLMSettings(voice="NATM1", system_instruction="You sell."),
            argparse.Namespace(
                records=str(tmp_path), greeting=None, prompt="You sell.", transport="webrtc"
            ),
            rate=SAMPLE_RATE,
            idle_seconds=None,
            running=set(),
        )
        speaking: list[asyncio.Task[None]] = []
        # The caller speaks once the session is opened: then the pipeline is set up.
        prepare = engine.on_open
        loop = asyncio.get_running_loop()

        def on_open(session: Any) -> None:
            prepare(session)
            speaking.append(loop.create_task(window.visit()))

        engine.on_open = on_open
        stt = WritesOnce() if with_stt else None
        await asyncio.wait_for(take_order(call, stt), 30)
        await asyncio.gather(*speaking)

    system, *turns = record_in(tmp_path)
    assert (system["role"], system["content"], system["voice"]) == ("system", "You sell.", "NATM1")
    words = {turn["role"]: turn["content"] for turn in turns}
    expected = {"assistant": "Welcome!"}
    if with_stt:
        expected["user"] = "One spicy, please."
    assert words == expected


def test_record_files_have_unique_names_and_no_empty_turns(tmp_path: Path) -> None:
    first, second = CallRecord(tmp_path, {"voice": "V"}), CallRecord(tmp_path, {"voice": "V"})
    first.add_turn("user", "  ", "now")
    first.add_turn("user", "Grüße", "now")
    assert first.path != second.path and first.path.parent == tmp_path
    lines = first.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("content") for line in lines] == [None, "Grüße"]


def test_a_record_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--records"):
        record_folder(str(tmp_path / "file" / "folder"))


def test_no_speech_to_text_by_default() -> None:
    assert speech_to_text("none") is None
