"""An agent in discrete time, with the methods of tau-voice's ``DiscreteTimeAdapter``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from pipecat_personaplex.audio import is_audible
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.adapters.stepped_call import SteppedCall
from pipecat_personaplex.eval.latency.mulaw import decode_mulaw, encode_mulaw
from pipecat_personaplex.interface import EngineLike

_RATE = 8_000
_SILENCE = b"\xff"


@dataclass(frozen=True)
class Tick:
    """What the agent says in a tick, named as in tau-voice's ``TickResult``; audio is mu-law."""

    tick_number: int
    agent_audio_data: bytes
    proportional_transcript: str
    contains_speech: bool


class DiscreteTimeAgent:
    """PersonaPlex, one tick after another; its audio is two frames (160 ms) late.

    A tick gives it a fixed amount of the user's audio and returns as much of the agent's.

    Example::

        agent = DiscreteTimeAgent(engine, tick_duration_ms=200, voice="NATF2")
        agent.connect("You work for an airline.", tools=[], vad_config=None)
        tick = agent.run_tick(user_audio)  # 1600 bytes of mu-law
        agent.disconnect()
    """

    def __init__(
        self, engine: EngineLike, tick_duration_ms: int = 200, voice: str = "NATF2",
        sampling: SamplingParams | None = None,
    ):  # fmt: skip
        if type(tick_duration_ms) is not int or tick_duration_ms <= 0:
            raise ConfigError(
                f"tick_duration_ms must be a positive integer, not {tick_duration_ms}"
            )
        self.bytes_per_tick = _RATE * tick_duration_ms // 1000
        self._engine, self._voice, self._sampling = engine, voice, sampling
        self._call: SteppedCall | None = None
        self._ticks = 0

    @property
    def is_connected(self) -> bool:
        """Whether a call is open."""
        return self._call is not None

    def connect(
        self, system_prompt: str, tools: Sequence[object] = (), vad_config: object = None,
        modality: str = "audio",
    ) -> None:  # fmt: skip
        """Open a call; the model has no tools and no voice detector (ConfigError for tools)."""
        if tools or modality != "audio":
            raise ConfigError("PersonaPlex takes audio, and calls no tools: pass tools=[]")
        self.disconnect()
        self._call = SteppedCall(self._engine, Persona(self._voice, system_prompt), self._sampling)
        self._up = soxr.ResampleStream(_RATE, SAMPLE_RATE, 1, dtype="float32")
        self._down = soxr.ResampleStream(SAMPLE_RATE, _RATE, 1, dtype="float32")
        # A frame and the resamplers' delay, so that every tick can be filled.
        self._waiting = _SILENCE * round(2 * FRAME_SECONDS * _RATE)
        self._ticks = 0

    def run_tick(self, user_audio: bytes, tick_number: int | None = None) -> Tick:
        """Advance by one tick of mu-law at 8 kHz; shorter audio is padded with silence."""
        if self._call is None:
            raise ConfigError("connect() comes before run_tick()")
        if len(user_audio) > self.bytes_per_tick:
            raise ConfigError(f"a tick has {self.bytes_per_tick} bytes, not {len(user_audio)}")
        self._ticks = self._ticks + 1 if tick_number is None else tick_number
        heard = decode_mulaw(user_audio.ljust(self.bytes_per_tick, _SILENCE))
        frames = self._call.push(self._up.resample_chunk(heard).astype(np.float32))
        for frame in frames:
            self._waiting += encode_mulaw(self._down.resample_chunk(frame.pcm))
        played = self._waiting[: self.bytes_per_tick].ljust(self.bytes_per_tick, _SILENCE)
        self._waiting = self._waiting[self.bytes_per_tick :]
        text = "".join(frame.text for frame in frames)
        return Tick(self._ticks, played, text, any(is_audible(frame.pcm) for frame in frames))

    def disconnect(self) -> None:
        """End the call; does nothing without one."""
        if self._call is not None:
            self._call.close()
            self._call = None
