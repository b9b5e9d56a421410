"""From the model's frames to those that Pipecat plays and writes down."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pipecat.frames.frames import Frame, InputAudioRawFrame, SpeechOutputAudioRawFrame
from pipecat.processors.aggregators.llm_context import LLMContext, is_given

from pipecat_personaplex.audio import Pcm, float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.audio import NoiseGate, StreamResampler
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.transcript import Transcript


class AgentOutput:
    """What is to be pushed for what the model says, in order.

    Args:
        playout: With it, silence is left out while too much audio waits to be played.
        noise_gate_dbfs: RMS level below which audio becomes digital silence; None leaves it alone.
    """

    def __init__(self, playout: PlayoutMeter | None, noise_gate_dbfs: float | None):
        self._playout = playout
        self._gate = None if noise_gate_dbfs is None else NoiseGate(noise_gate_dbfs)
        self._transcript = Transcript()
        self._resampler = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)

    @property
    def backlog(self) -> float | None:
        """Seconds of audio waiting to be played; None without a meter."""
        return self._playout.backlog if self._playout else None

    def set_rate(self, rate: int) -> None:
        """Make audio of this rate from now on."""
        self._resampler = StreamResampler(SAMPLE_RATE, rate)

    def frames(self, answer: SessionFrame) -> Iterator[Frame]:
        """The frames for 80 ms of the model, each made when the one before has been pushed."""
        yield from self._transcript.push(answer.text)
        pcm, silent = self._gate.process(answer.pcm) if self._gate else (answer.pcm, False)
        if not (silent and self._playout is not None and self._playout.long):
            yield from self._audio(pcm)

    def end_turn(self) -> list[Frame]:
        """The frames that end the agent's turn, if one is open."""
        return self._transcript.close()

    def _audio(self, pcm: Pcm) -> Iterator[Frame]:
        samples = float_to_pcm16(self._resampler.push(pcm))
        frame = SpeechOutputAudioRawFrame(samples.tobytes(), self._resampler.target_rate, 1)
        # The model goes on talking whatever an interruption says; a hole in it helps nobody.
        frame.interruptible = False
        if self._playout is None:
            yield frame
            return
        mark = self._playout.sent(frame.num_frames / frame.sample_rate)
        yield frame
        yield mark


class CallerInput:
    """The caller's audio, of whatever rate and channels; either may change in mid-call."""

    def __init__(self) -> None:
        self._resampler = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)

    def pcm(self, frame: InputAudioRawFrame) -> Pcm:
        """A frame's audio: float32 mono 24 kHz."""
        pcm = pcm16_to_float(np.frombuffer(frame.audio, dtype=np.int16))
        if frame.num_channels > 1:
            pcm = pcm.reshape(-1, frame.num_channels).mean(axis=1)
        if self._resampler.source_rate != frame.sample_rate:
            self._resampler = StreamResampler(frame.sample_rate, SAMPLE_RATE)
        return self._resampler.push(pcm)


def system_prompt_of(context: LLMContext) -> str:
    """The text of the first message, if that is a system message."""
    messages = context.get_messages()
    first = messages[0] if messages else None
    if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
        return ""
    content = first.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part.get("text", "") for part in parts if isinstance(part, dict))


def brings_tools(context: LLMContext) -> bool:
    """Whether it expects a model that calls functions."""
    return is_given(context.tools)
