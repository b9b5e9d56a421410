"""Step and frame counters of an engine."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipecat_personaplex.interface import STEP_BOUNDS_MS, EngineStats

if TYPE_CHECKING:
    from pipecat_personaplex.engine.prefill import PrefixCache

_RECENT_STEPS = 1024


@dataclass
class Counters:
    """Totals since the engine was loaded. Written by the model thread only, read by any."""

    steps: int = 0
    frames: int = 0
    late_frames: int = 0
    replays: int = 0
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    step_seconds_total: float = 0.0
    step_histogram: list[int] = field(default_factory=lambda: [0] * (len(STEP_BOUNDS_MS) + 1))

    def count_step(self, seconds: float) -> None:
        """Count one step of this duration."""
        self.steps += 1
        self.step_seconds.append(seconds)
        self.step_seconds_total += seconds
        self.step_histogram[bisect_left(STEP_BOUNDS_MS, seconds * 1e3)] += 1

    def recent_step_ms(self, percentile: float) -> float:
        """A percentile of the last 1,024 step times in milliseconds; safe on any thread."""
        # list() copies a deque under the interpreter lock, while the model thread may append.
        recent = list(self.step_seconds)
        return float(np.percentile(recent, percentile)) * 1e3 if recent else 0.0

    def stats(
        self,
        prefixes: PrefixCache,
        *,
        healthy: bool,
        sessions: int,
        queued_frames: int,
        max_sessions: int,
        refused: int,
        slow_callbacks: int,
        stuck_callbacks: int,
    ) -> EngineStats:
        """These totals with the engine's state, as its users see them; safe on any thread."""
        return EngineStats(
            healthy=healthy,
            sessions=sessions,
            queued_frames=queued_frames,
            max_sessions=max_sessions,
            steps=self.steps,
            frames=self.frames,
            late_frames=self.late_frames,
            refused=refused,
            step_p50_ms=self.recent_step_ms(50),
            step_p99_ms=self.recent_step_ms(99),
            step_seconds_total=self.step_seconds_total,
            step_histogram=tuple(self.step_histogram),
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_bytes=prefixes.nbytes,
            slow_callbacks=slow_callbacks,
            stuck_callbacks=stuck_callbacks,
        )
