"""What an engine has done, counted as it goes and as it is told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_RECENT_STEPS = 1024


@dataclass
class Counters:
    """What has happened since the engine was loaded. Written by the model thread alone."""

    steps: int = 0
    frames: int = 0
    late_frames: int = 0
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine now, and over its last 1,024 steps.

    Attributes:
        healthy: False once the device or the model thread has failed.
        sessions: Open sessions.
        max_sessions: Slots.
        steps: Steps since the start.
        frames: Frames answered since the start, all sessions together.
        late_frames: Of these, answered more than 80 ms after their last sample arrived.
        refused: Sessions refused because all slots were taken.
        step_p50_ms: Median step time.
        step_p99_ms: 99th percentile of it.
        prefix_hits: Prompts found in the prefix cache.
        prefix_misses: Prompts computed.
        prefix_bytes: Memory the prefix cache holds.
    """

    healthy: bool
    sessions: int
    max_sessions: int
    steps: int
    frames: int
    late_frames: int
    refused: int
    step_p50_ms: float
    step_p99_ms: float
    prefix_hits: int
    prefix_misses: int
    prefix_bytes: int
