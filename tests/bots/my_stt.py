"""Functions for ``--stt MODULE:FUNCTION``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from pipecat.frames.frames import Frame, TranscriptionFrame
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import SegmentedSTTService

from tests.helpers.callers import ScriptedStt


class LengthStt(SegmentedSTTService):
    """Transcribes a piece of speech as its length."""

    def __init__(self, **kwargs: Any):
        super().__init__(settings=STTSettings(model=None, language=None), **kwargs)

    @property
    def wants_wav_segments(self) -> bool:
        return False

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        seconds = len(audio) / 2 / self.sample_rate
        yield TranscriptionFrame(f"{seconds:.1f} seconds at {self.sample_rate}", "", "now")


def create(sample_rate: int) -> LengthStt:
    return LengthStt(sample_rate=sample_rate)


def create_order(sample_rate: int) -> ScriptedStt:
    """A caller who orders after a second, and asks the time after ten."""
    return ScriptedStt([(1.0, "Two spicy, please."), (10.0, "What time is it?")])


def create_nothing(sample_rate: int) -> str:
    return "no service"


not_a_function = 1
