"""What callers of an engine rely on, wherever it runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    PersonaPlexError,
)

STEP_BOUNDS_MS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 100, 160, 320)
"""Upper bounds of the step-time histogram: fine where a step becomes too slow for its frame."""


def new_session_id() -> str:
    """A short public id that names a session in logs and to its client: 8 hex digits.

    It is no secret and gives no rights; it only tells sessions apart.
    """
    return secrets.token_hex(4)


class SessionLike(Protocol):
    """What callers ask of a session; ``Session`` is one."""

    @property
    def id(self) -> str:
        """The session's public id, as in the logs."""

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far; cheap enough for every frame."""

    def push(self, pcm: Pcm) -> None:
        """Give the session audio; never blocks."""

    def say(self, text: str) -> None:
        """Have the agent say these words next; returns at once."""

    def update(self, sampling: SamplingParams) -> None:
        """Draw tokens in a new way from the next frame on."""

    def stats(self) -> SessionStats:
        """Counters so far."""

    def close(self) -> None:
        """End the session; its slot is free at once."""


class EngineLike(Protocol):
    """What callers ask of an engine; ``Engine`` is one."""

    @property
    def voices(self) -> list[str]:
        """Names that a persona may use."""

    @property
    def max_in_flight_frames(self) -> int:
        """Frames that a session in good order may owe: given, and not answered yet."""

    @property
    def max_sessions(self) -> int:
        """Slots; 0 where that is not known."""

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> SessionLike:
        """Open a session; returns at once."""


Codes = npt.NDArray[np.int64]
MAX_SPEECH_FRAMES = 1_500
"""Forced text a session may have waiting: two minutes."""


@dataclass(frozen=True, slots=True)
class FrameTimings:
    """Where a frame's time went.

    Attributes:
        queued_ms: From the last sample's arrival to the start of its step.
        step_ms: The step itself, shared with the rest of the batch.
    """

    queued_ms: float
    step_ms: float

    @property
    def total_ms(self) -> float:
        """From the last sample in to the frame out."""
        return self.queued_ms + self.step_ms


@dataclass(frozen=True, slots=True)
class SessionFrame:
    """The agent's 80 ms in answer to the caller's.

    Attributes:
        index: Of the frame in its session, from 0.
        pcm: The agent's audio, float32 [1920], 24 kHz.
        text: The inner monologue's piece, its leading space included; empty for padding.
        text_token: Its token id.
        agent_codes: The codes that ``pcm`` was decoded from, int64 [8].
        user_codes: The codes that the caller's frame was encoded to, int64 [8].
        timings: How long it took.
    """

    index: int
    pcm: Pcm
    text: str
    text_token: int
    agent_codes: Codes
    user_codes: Codes
    timings: FrameTimings


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Counters of a session so far.

    Attributes:
        frames: Frames answered.
        late_frames: Of these, answered more than 80 ms after their last sample arrived.
        dropped_frames: Input frames dropped because too many waited.
        queued_frames: Input frames waiting now.
    """

    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int


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
