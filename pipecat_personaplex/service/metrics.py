"""What a call tells Pipecat's metrics."""

from __future__ import annotations

import numpy as np
from pipecat.metrics.metrics import LLMTokenUsage, LLMUsageMetricsData, ProcessingMetricsData

from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.call import Call

MODEL_NAME = "personaplex"


class PersonaPlexMetricsData(ProcessingMetricsData):
    """A few seconds of a call; ``value`` is the mean time of a model step, in seconds.

    Parameters:
        step_max: Longest step, in seconds.
        frames: Frames answered (80 ms each).
        late_frames: Of these, answered more than 80 ms after their last sample arrived.
        input_backlog: Seconds of input waiting for the model, now.
        playout_backlog: Seconds of output waiting to be played, now; None without a meter.
        silence_inserted: Seconds of silence fed since the call began, for want of input.
        input_discarded: Seconds of input left out since the call began, to stay in time.
    """

    step_max: float
    frames: int
    late_frames: int
    input_backlog: float
    playout_backlog: float | None
    silence_inserted: float
    input_discarded: float


class MetricsWindow:
    """What is gathered between two metrics frames."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._late = 0
        self._tokens = 0

    @property
    def frames(self) -> int:
        """Frames counted."""
        return len(self._steps)

    def add(self, frame: SessionFrame) -> bool:
        """Count a frame; whether it was late."""
        late = frame.timings.total_ms > FRAME_SECONDS * 1e3
        self._steps.append(frame.timings.step_ms / 1e3)
        self._late += late
        self._tokens += bool(frame.text)
        return late

    def metrics(
        self, processor: str, call: Call, playout_backlog: float | None
    ) -> PersonaPlexMetricsData:
        """The figures, with the state of the call; of at least one frame."""
        pacing = call.pacing
        return PersonaPlexMetricsData(
            processor=processor,
            model=MODEL_NAME,
            value=float(np.mean(self._steps)),
            step_max=max(self._steps),
            frames=self.frames,
            late_frames=self._late,
            input_backlog=call.owed_frames * FRAME_SECONDS,
            playout_backlog=playout_backlog,
            silence_inserted=pacing.silence / SAMPLE_RATE,
            input_discarded=(pacing.discarded + pacing.dropped) / SAMPLE_RATE,
        )

    def usage(self, processor: str) -> LLMUsageMetricsData:
        """The text tokens spoken; a full-duplex model is prompted once, before the call."""
        usage = LLMTokenUsage(
            prompt_tokens=0, completion_tokens=self._tokens, total_tokens=self._tokens
        )
        return LLMUsageMetricsData(processor=processor, model=MODEL_NAME, value=usage)
