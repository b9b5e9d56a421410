"""What an engine has done, counted as it goes and as it is told."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

import numpy as np

_RECENT_STEPS = 1024

STEP_BOUNDS_MS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 100, 160, 320)
"""Upper bounds of the step-time histogram: fine where a step becomes too slow for its frame."""


@dataclass
class Counters:
    """What has happened since the engine was loaded. Written by the model thread alone."""

    steps: int = 0
    frames: int = 0
    late_frames: int = 0
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    step_seconds_total: float = 0.0
    step_histogram: list[int] = field(default_factory=lambda: [0] * (len(STEP_BOUNDS_MS) + 1))

    def count_step(self, seconds: float) -> None:
        """Count a step that took so long."""
        self.steps += 1
        self.step_seconds.append(seconds)
        self.step_seconds_total += seconds
        self.step_histogram[bisect_left(STEP_BOUNDS_MS, seconds * 1e3)] += 1

    def recent_step_ms(self, percentile: float) -> float:
        """A percentile over the last 1,024 steps; may be asked for on any thread."""
        # list() of a deque is one step of the interpreter: the model thread cannot interfere.
        recent = list(self.step_seconds)
        return float(np.percentile(recent, percentile)) * 1e3 if recent else 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine now, and over its last 1,024 steps.

    Attributes:
        healthy: False once the device or the model thread has failed.
        sessions: Open sessions.
        queued_frames: Input frames that wait, all sessions together.
        max_sessions: Slots.
        steps: Steps since the start.
        frames: Frames answered since the start, all sessions together.
        late_frames: Of these, answered more than 80 ms after their last sample arrived.
        refused: Sessions refused because all slots were taken.
        step_p50_ms: Median step time.
        step_p99_ms: 99th percentile of it.
        step_seconds_total: Time in steps since the start.
        step_histogram: Steps since the start by duration: one count for each of
            ``STEP_BOUNDS_MS``, and those beyond.
        prefix_hits: Prompts found in the prefix cache.
        prefix_misses: Prompts computed.
        prefix_bytes: Memory the prefix cache holds.
    """

    healthy: bool
    sessions: int
    queued_frames: int
    max_sessions: int
    steps: int
    frames: int
    late_frames: int
    refused: int
    step_p50_ms: float
    step_p99_ms: float
    step_seconds_total: float
    step_histogram: tuple[int, ...]
    prefix_hits: int
    prefix_misses: int
    prefix_bytes: int
