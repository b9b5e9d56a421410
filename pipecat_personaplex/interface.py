"""The contract between an engine and its users, local or remote. It does not import torch."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import ConfigError, PersonaPlexError

Codes = npt.NDArray[np.int64]
"""Audio codes of one frame, int64 [8]: one per codebook."""

MAX_SPEECH_FRAMES = 1_500
"""About how many frames of forced speech may wait in a session: two minutes."""

STEP_BOUNDS_MS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 100, 160, 320)
"""Upper bounds of the step-time histogram, fine up to the 80 ms that a step may take."""


Feature = Literal["say", "sampling", "hold", "prompt", "history"]
"""What a session can do while it runs.

``say``: forced speech with progress (``say``, ``hush``). ``sampling``: ``update``. ``hold``:
``hold`` and ``release``. ``prompt``: ``update_prompt``. ``history``: ``history``, and
``open_session`` takes one.
"""

ALL_FEATURES: frozenset[Feature] = frozenset(get_args(Feature))

MAX_HOLD_SECONDS = 30.0
"""Longest hold of one call of ``hold``: a lost ``release`` must not silence an agent for good."""


def checked_hold(seconds: float) -> float:
    """Return the length of a hold.

    Raises:
        ConfigError: It is not a number from 0 to ``MAX_HOLD_SECONDS``.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds <= MAX_HOLD_SECONDS:
        raise ConfigError(
            f"a hold must be a number of seconds from 0 to {MAX_HOLD_SECONDS:g}, not {seconds!r}"
        )
    return seconds


@dataclass(eq=False)
class Speech:
    """Words that an agent was told to say, and how far it has got.

    A handle: the engine updates it while the words are spoken. Read it from any thread.

    Attributes:
        text: The words, without emoji and without words that have no letter or digit.
        words: How many there are.
        spoken: How many of them have been heard: they stand in the inner monologue, and the agent's
            voice sounded.
        state: ``waiting``, ``speaking``, ``said`` (all words), or ``cut`` (by ``hush``, or because
            the session ended).
    """

    text: str
    words: int
    spoken: int = 0
    state: Literal["waiting", "speaking", "said", "cut"] = "waiting"


def new_session_id() -> str:
    """Return a short public id that names a session in logs and to its client: 8 hex digits.

    The id is not secret and grants no rights.
    """
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class FrameTimings:
    """How long a frame took.

    Attributes:
        queued_ms: From the arrival of the last input sample to the start of the step.
        step_ms: The step, which the whole batch shares.
    """

    queued_ms: float
    step_ms: float

    @property
    def total_ms(self) -> float:
        """From the arrival of the last input sample to the output frame."""
        return self.queued_ms + self.step_ms


@dataclass(frozen=True, slots=True)
class SessionFrame:
    """80 ms of the agent's output, computed from the caller's frame of the same index.

    Attributes:
        index: Index of the frame in its session, from 0.
        pcm: The agent's audio, float32 [1920], mono, 24 kHz.
        text: The piece of the inner monologue, with its leading space; empty for padding.
        text_token: Token id of the piece.
        agent_codes: Codes from which ``pcm`` was decoded, int64 [8].
        user_codes: Codes of the caller's frame, int64 [8].
        timings: How long the frame took.
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
        frames: Output frames.
        late_frames: Output frames later than 80 ms after the arrival of their last input sample.
        dropped_frames: Input frames dropped because too many waited.
        queued_frames: Input frames that wait now.
    """

    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine now, and its totals since it was loaded.

    Attributes:
        healthy: False once the device or the model thread has failed.
        sessions: Open sessions.
        queued_frames: Input frames that wait, all sessions together.
        max_sessions: Slots.
        steps: Steps so far.
        frames: Output frames so far, all sessions together.
        late_frames: Output frames later than 80 ms after the arrival of their last input sample.
        refused: Sessions refused because all slots were taken.
        step_p50_ms: Median time of the last 1,024 steps.
        step_p99_ms: 99th percentile of their times.
        step_seconds_total: Time in steps so far.
        step_histogram: Steps so far by duration: one count for each of
            ``STEP_BOUNDS_MS``, and one for longer steps.
        prefix_hits: Prompts found in the prefix cache.
        prefix_misses: Prompts computed.
        prefix_bytes: Memory that the prefix cache holds.
        slow_callbacks: Callbacks that took longer than 80 ms, and so delayed every caller.
        stuck_callbacks: Callbacks that did not return in five seconds; their sessions ended.
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
    slow_callbacks: int = 0
    stuck_callbacks: int = 0


@dataclass(frozen=True, eq=False)
class CallHistory:
    """A call so far, from which another session can continue it.

    Attributes:
        tokens: Text, agent codes and user codes of each frame, oldest first, int16 [n, 17]; at most
            the newest frames that fit into a window.
        caller: The newest audio of the caller, float32 [m] mono 24 kHz, a whole number of frames:
            it brings the codec of the new session into its state.
    """

    tokens: npt.NDArray[np.int16]
    caller: Pcm


class SessionLike(Protocol):
    """A session of any engine; ``Session`` and ``RemoteSession`` implement it.

    All members are safe to use on any thread, also inside the session's callbacks, and never
    block. Once the session is over, methods that change it raise ``SessionFailed``.
    """

    @property
    def id(self) -> str:
        """The session's public id, as in the logs; see ``new_session_id``."""

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far because too many waited. They have no output frame.

        Takes no lock: it may be read for every frame.
        """

    def push(self, pcm: Pcm) -> None:
        """Queue the caller's audio.

        Every 1,920 samples make one input frame, and each input frame that is not dropped makes
        one output frame. Audio pushed before ``on_ready`` waits in the queue. If the queue is
        full, the oldest frame is dropped.

        Args:
            pcm: float32 [n], mono, 24 kHz, -1 to 1, any length. The session does not refer to the
                array after this call.

        Raises:
            InvalidAudio: The audio is not finite float32 mono. Nothing is queued; the session
                continues.
            SessionFailed: The session is over.
        """

    @property
    def features(self) -> frozenset[Feature]:
        """What this session can do; the others of these methods raise ``ConfigError``."""

    def say(
        self,
        text: str,
        *,
        when: Literal["pause", "now"] = "pause",
        on_done: Callable[[Speech], object] | None = None,
    ) -> Speech:
        """Have the agent speak a text, after the texts that wait already, at the model's pace.

        Args:
            text: A sentence or more, in plain words.
            when: ``pause`` waits for a pause: at most 2.4 s for the agent's own words, and at
                most 10 s for a caller who speaks; ``now`` begins in the next frame.
            on_done: Called once, on the thread of the other callbacks, when the text was said or
                cut.

        Returns:
            A handle that shows the progress.

        Raises:
            UserError: The text is too long, or the engine does not support forced speech. Nothing
                is queued; the session continues.
            SessionFailed: The session is over.
        """

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        """Drop the words that have not begun, of one speech or of all; finish the current word.

        Returns:
            The speeches that were cut, in order.

        Raises:
            SessionFailed: The session is over.
        """

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for this time, except for words to say. A new hold replaces it.

        Raises:
            ConfigError: Not a number from 0 to ``MAX_HOLD_SECONDS``, or not supported.
            SessionFailed: The session is over.
        """

    def release(self) -> None:
        """End a hold now.

        Raises:
            SessionFailed: The session is over.
        """

    def update_prompt(
        self,
        persona: Persona,
        *,
        history: int | None = None,
        on_done: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> None:
        """Replace the persona while the call goes on; the agent remembers the call.

        The new prompt and the tokens of the call are computed beside the running call, and replace
        its state between two frames. Audio and frame indices have no gap. A later call replaces
        one that has not begun; one that has begun is finished first.

        Args:
            persona: The new voice and role.
            history: How many of the newest frames to remember. At most, and by default, as many as
                leave a quarter of the window free.
            on_done: Called once, on the thread of the other callbacks: with None when the new
                prompt is in effect, or with the error that left the old one in effect.

        Raises:
            UserError: The prompt does not fit, the voice is unknown, or the engine does not support
                this. The old prompt stays in effect.
            SessionFailed: The session is over.
        """

    def history(self) -> CallHistory:
        """The call so far, for ``open_session`` of this or another engine.

        Raises:
            ConfigError: Not supported.
        """

    def update(self, sampling: SamplingParams) -> None:
        """Sample tokens with other parameters, from the next frame on.

        Raises:
            ConfigError: These are not ``SamplingParams``, or the engine does not support the
                change. Nothing has changed; the session continues.
            SessionFailed: The session is over.
        """

    def stats(self) -> SessionStats:
        """Counters so far. Takes a lock."""

    def close(self) -> None:
        """End the session and free its slot; does nothing if the session is over.

        No frame is delivered after this call, except one that is being delivered at the moment.
        ``on_end`` follows.
        """


class EngineLike(Protocol):
    """An engine that opens sessions; ``Engine`` and ``RemoteEngine`` implement it.

    All members are safe to use on any thread.
    """

    @property
    def voices(self) -> list[str]:
        """Names that a persona may use as its voice."""

    @property
    def features(self) -> frozenset[Feature]:
        """What its sessions can do."""

    @property
    def max_in_flight_frames(self) -> int:
        """Input frames that a session which keeps up may have in flight.

        A frame is in flight from ``push`` until its output frame is delivered. A user that pushes
        no more than this many ahead of the output adds no delay.
        """

    @property
    def max_sessions(self) -> int:
        """Slots; 0 if unknown."""

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: CallHistory | None = None,
    ) -> SessionLike:
        """Open a session. Returns at once; the prompt is computed in the background.

        The callbacks run on a thread of the engine, one at a time, and must return at once. They
        may run before this method has returned.

        Args:
            persona: Voice and role.
            sampling: How tokens are sampled; None for the defaults.
            on_frame: Called with each output frame, in order, after ``on_ready``.
            on_ready: Called at most once, when the prompt is computed.
            on_end: Called once, as the last callback: with the error that ended the session, or
                with None after ``close``.
            history: A call to continue: the agent remembers it. Output frames start at index 0.

        Raises:
            EngineFull: Every slot is taken.
            EngineError: The engine cannot serve for another reason.
            UserError: The persona or the sampling is invalid.

        A remote engine raises what it knows at once, and passes the errors of its server to
        ``on_end``, before any ``on_ready``.
        """
