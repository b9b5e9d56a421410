"""Metrics of a call, as Pipecat's metrics data."""

from __future__ import annotations

import numpy as np
from pipecat.metrics.metrics import (
    LLMTokenUsage,
    LLMUsageMetricsData,
    ProcessingMetricsData,
    TTFBMetricsData,
)

from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.call import Call

MODEL_NAME = "personaplex"


class PersonaPlexMetricsData(ProcessingMetricsData):
    """A few seconds of a call; ``value`` is the mean time of a model step, in seconds.

    Parameters:
        step_max: Longest step, in seconds.
        frames: Frames received from the model (80 ms each).
        late_frames: Of these, received more than 80 ms after the arrival of their last input
            sample.
        input_backlog: Seconds of input without an output frame yet, now.
        playout_backlog: Seconds of output that wait to be played, now; None without a
            ``PlayoutMeter``.
        silence_inserted: Seconds of silence inserted since the call began because input was late.
        input_discarded: Seconds of input left out since the call began to avoid a delay.
    """

    step_max: float
    frames: int
    late_frames: int
    input_backlog: float
    playout_backlog: float | None
    silence_inserted: float
    input_discarded: float


def response_metrics(processor: str, seconds: float) -> TTFBMetricsData:
    """The time from the end of the caller's speech to the agent's onset, as Pipecat's TTFB."""
    return TTFBMetricsData(processor=processor, model=MODEL_NAME, value=seconds)


class MetricsWindow:
    """Counters between two metrics frames."""

    def __init__(self) -> None:
        self._step_seconds: list[float] = []
        self._late = 0
        self._tokens = 0

    @property
    def frames(self) -> int:
        """Frames counted so far."""
        return len(self._step_seconds)

    def add(self, frame: SessionFrame) -> bool:
        """Count a frame.

        Returns:
            Whether the frame was late.
        """
        late = frame.timings.total_ms > FRAME_SECONDS * 1e3
        self._step_seconds.append(frame.timings.step_ms / 1e3)
        self._late += late
        self._tokens += bool(frame.text)
        return late

    def metrics(
        self, processor: str, call: Call, playout_backlog: float | None
    ) -> PersonaPlexMetricsData:
        """The metrics of at least one frame, with the present state of the call."""
        pacing = call.pacing
        return PersonaPlexMetricsData(
            processor=processor,
            model=MODEL_NAME,
            value=float(np.mean(self._step_seconds)),
            step_max=max(self._step_seconds),
            frames=self.frames,
            late_frames=self._late,
            input_backlog=call.backlog_frames * FRAME_SECONDS,
            playout_backlog=playout_backlog,
            silence_inserted=pacing.silence / SAMPLE_RATE,
            input_discarded=(pacing.discarded + pacing.dropped) / SAMPLE_RATE,
        )

    def usage(self, processor: str) -> LLMUsageMetricsData:
        """The text tokens spoken. Prompt tokens are 0: the prompt is computed before the call."""
        usage = LLMTokenUsage(
            prompt_tokens=0, completion_tokens=self._tokens, total_tokens=self._tokens
        )
        return LLMUsageMetricsData(processor=processor, model=MODEL_NAME, value=usage)
