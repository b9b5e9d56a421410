"""One client's session with the engine: audio in, frames out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS, ZERO_TOKEN
from pipecat_personaplex.errors import (
    ConfigError,
    InvalidAudio,
    PersonaPlexError,
    SessionFailed,
    SpeechTooLong,
)
from pipecat_personaplex.interface import (
    ALL_FEATURES,
    MAX_SPEECH_FRAMES,
    CallHistory,
    Feature,
    SessionFrame,
    SessionStats,
    new_session_id,
)

if TYPE_CHECKING:  # the engine is a layer above; it passes these objects
    from pipecat_personaplex.engine.history import History
    from pipecat_personaplex.engine.prompt_updates import PromptUpdates


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A complete input frame that waits for its step.

    Attributes:
        pcm: float32 [1920], mono, 24 kHz, -1 to 1.
        arrived: When its last sample arrived, in monotonic seconds.
    """

    pcm: Pcm
    arrived: float


def checked_pcm(pcm: Pcm) -> Pcm:
    """Validate audio and return a copy, clipped to -1 to 1.

    Args:
        pcm: float32 [n], mono, 24 kHz.

    Raises:
        InvalidAudio: The audio is not finite float32 mono.
    """
    if not isinstance(pcm, np.ndarray) or pcm.dtype != np.float32 or pcm.ndim != 1:
        got = (
            f"{pcm.dtype} {list(pcm.shape)}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        )
        raise InvalidAudio(
            f"audio must be a float32 numpy array of one dimension (mono, 24 kHz, -1 to 1), not "
            f"{got}; for 16-bit samples use pipecat_personaplex.audio.pcm16_to_float"
        )
    bad = pcm.size - int(np.count_nonzero(np.isfinite(pcm)))
    if bad:
        raise InvalidAudio(
            f"{bad} of {pcm.size} samples are NaN or infinite; the push was ignored, the session "
            "goes on"
        )
    return np.clip(pcm, -1.0, 1.0)


class InputQueue:
    """The input frames of one session that wait for their step; safe for use from any thread.

    The queue is bounded. If a frame arrives and the queue is full, the oldest frame is dropped and
    counted: a client that sends faster than its frames are processed loses sound and gains no
    delay.

    Args:
        max_frames: Complete frames (80 ms each) that may wait.

    Example::

        queue = InputQueue(max_frames=25)
        if queue.push(checked_pcm(pcm), time.monotonic()):
            frame = queue.take()
    """

    def __init__(self, max_frames: int):
        self._max_frames = max_frames
        self._lock = threading.Lock()
        self._buffer = FrameBuffer()
        self._frames: deque[QueuedFrame] = deque()
        self._dropped = 0

    @property
    def has_frame(self) -> bool:
        """Whether a complete frame waits. Takes no lock."""
        return bool(self._frames)

    @property
    def queued(self) -> int:
        """Complete frames that wait. Takes no lock."""
        return len(self._frames)

    @property
    def dropped(self) -> int:
        """Frames dropped so far because the queue was full. Takes no lock."""
        return self._dropped

    def push(self, pcm: Pcm, now: float) -> bool:
        """Append samples and queue the frames that they complete.

        Args:
            pcm: Valid samples, see ``checked_pcm``: float32 [n]. A chunk of exactly one frame may
                be queued without a copy, so the caller must not change it afterwards.
            now: Monotonic seconds; the arrival time of these frames.

        Returns:
            Whether at least one frame was queued.
        """
        with self._lock:
            excess = self._buffer.completed_by(len(pcm)) - self._max_frames
            if excess > 0:
                # More than the whole queue: skip what would be dropped instead of cutting it.
                pcm = pcm[self._buffer.skip(excess) :]
                self._dropped += excess
            frames = self._buffer.push(pcm)
            self._frames.extend(QueuedFrame(frame, now) for frame in frames)
            while len(self._frames) > self._max_frames:
                self._frames.popleft()
                self._dropped += 1
            return bool(frames)

    def take(self) -> QueuedFrame | None:
        """Remove and return the oldest frame; None if no complete frame waits."""
        with self._lock:
            return self._frames.popleft() if self._frames else None


class Session:
    """A conversation in progress; created by ``Engine.open_session``.

    The methods for the client are safe on any thread. The callbacks run on the model thread and
    must return at once: ``on_ready`` once, then ``on_frame`` for each frame in order, and
    ``on_end`` once as the last one.

    Attributes:
        id: The session's public id, as in the logs.
        persona: Voice and role, as in effect.
        sampling: How tokens are sampled, as last set.
        prompts: Requests to replace the prompt, for the engine.
        past: The frames so far, written by the engine.
        error: The error that ended the session; None if it is running or was closed.

    Raises:
        ConfigError: ``persona`` is not a ``Persona``, or ``sampling`` not a ``SamplingParams``.

    Example::

        session = engine.open_session(Persona("NATF2"), on_frame=print)
        session.wait_ready()
        session.push(pcm)
        session.close()
    """

    def __init__(
        self,
        persona: Persona,
        sampling: SamplingParams,
        *,
        on_ready: Callable[[], object] | None,
        on_frame: Callable[[SessionFrame], object],
        on_end: Callable[[PersonaPlexError | None], object] | None,
        wake: Callable[[], None],
        tokenize: Callable[[str], list[int]],
        prompts: PromptUpdates,
        past: History,
        max_queued_frames: int,
    ):
        if not isinstance(persona, Persona):
            raise ConfigError(
                f"persona must be a Persona (voice and text_prompt), not {type(persona).__name__}"
            )
        self.id = new_session_id()
        self.persona = persona
        self.sampling = _checked(sampling)
        self.error: PersonaPlexError | None = None
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._on_end = on_end
        self._wake = wake  # wakes the model thread
        self._tokenize = tokenize
        self.prompts = prompts
        self.past = past
        self._input = InputQueue(max_queued_frames)
        self._lock = threading.Lock()  # guards the forced text, new sampling and counters
        # Bounded by MAX_SPEECH_FRAMES; each step takes one token.
        self._forced_text: deque[int] = deque()
        self._new_sampling: SamplingParams | None = None
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._ended = threading.Event()
        self._frames = self._late = 0

    # For the client, on any thread.

    @property
    def closed(self) -> bool:
        """Whether the session is over, by ``close`` or by an error."""
        return self._closed.is_set()

    @property
    def queued_frames(self) -> int:
        """Complete input frames that wait for their step. Takes no lock."""
        return self._input.queued

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far because too many waited. Takes no lock."""
        return self._input.dropped

    def push(self, pcm: Pcm) -> None:
        """Queue the client's audio; never blocks.

        Args:
            pcm: float32 [n], mono, 24 kHz, any length; samples outside -1 to 1 are clipped. The
                session copies it.

        Raises:
            InvalidAudio: The audio is not finite float32 mono. Nothing is queued; the session
                continues.
            SessionFailed: The session is over.
        """
        self._require_open()
        if self._input.push(checked_pcm(pcm), time.monotonic()):
            self._wake()

    def say(self, text: str) -> None:
        """Have the agent speak this text, after the texts that wait already.

        The text is forced into the inner monologue at a speaking pace. The model generates the
        sound and samples it as always; its own words continue afterwards.

        Args:
            text: A sentence or more, in plain words.

        Raises:
            SpeechTooLong: More than two minutes of speech would wait. Nothing is queued.
            SessionFailed: The session is over.
        """
        self._require_open()
        tokens = self._tokenize(text)
        with self._lock:
            waiting = len(self._forced_text) + len(tokens)
            if waiting > MAX_SPEECH_FRAMES:
                raise SpeechTooLong(waiting, MAX_SPEECH_FRAMES)
            self._forced_text.extend(tokens)

    def update(self, sampling: SamplingParams) -> None:
        """Sample tokens with these parameters from the next frame on.

        Raises:
            ConfigError: ``sampling`` is not a ``SamplingParams``.
            SessionFailed: The session is over.
        """
        self._require_open()
        with self._lock:
            self.sampling = self._new_sampling = _checked(sampling)

    @property
    def features(self) -> frozenset[Feature]:
        """What this session can do."""
        return ALL_FEATURES

    def update_prompt(
        self,
        persona: Persona,
        *,
        history: int | None = None,
        on_done: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> None:
        """Replace the persona while the call goes on; the agent remembers the call.

        Args:
            persona: The new voice and role. ``Session.persona`` changes when it is in effect.
            history: Newest frames to remember; None for as many as fit into the window.
            on_done: Called once on the model thread, before ``on_end``; must return at once. With
                None, or with the error that left the old prompt in effect: a later one has
                replaced this one, the session has ended, or it could not be computed.

        Raises:
            UserError: The prompt is too long, the voice unknown, or an argument invalid.
            SessionFailed: The session is over.
        """
        self._require_open()
        self.prompts.request(persona, history, on_done)
        self._wake()

    def history(self) -> CallHistory:
        """The newest frames of the call, for ``open_session`` of this or another engine."""
        return self.past.snapshot()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the prompt is computed and frames are processed.

        Args:
            timeout: Seconds, or None for no limit. Do not call this on the model thread.

        Returns:
            Whether the session is ready.

        Raises:
            SessionFailed: The session ended with an error.
        """
        ready = self._ready.wait(timeout)
        self._raise_error()
        return ready and not self.closed

    def close(self) -> None:
        """End the session; never blocks. Its slot is available for another session at once."""
        self._closed.set()
        self._wake()

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until ``on_end`` has returned; no callback runs after it.

        Returns:
            Whether the session has ended.
        """
        return self._ended.wait(timeout)

    def stats(self) -> SessionStats:
        """Counters so far."""
        with self._lock:
            frames, late = self._frames, self._late
        return SessionStats(frames, late, self.dropped_frames, self.queued_frames)

    def _require_open(self) -> None:
        if self.closed:
            self._raise_error()
            raise SessionFailed("the session is closed; open another")

    def _raise_error(self) -> None:
        if self.error is not None:
            # Raise a fresh exception: re-raising one object accumulates tracebacks.
            raise SessionFailed(str(self.error)) from self.error

    # For the engine, on the model thread.

    @property
    def next_index(self) -> int:
        """Index of the next output frame."""
        return self._frames

    def has_frame(self) -> bool:
        """Whether a complete input frame waits."""
        return self._input.has_frame

    def take(self) -> QueuedFrame | None:
        """Remove and return the oldest complete input frame; None if there is none."""
        return self._input.take()

    def take_forced_text(self) -> int:
        """Remove and return the text token to force in the next step; -1 if there is none."""
        with self._lock:
            return self._forced_text.popleft() if self._forced_text else ZERO_TOKEN

    def take_new_sampling(self) -> SamplingParams | None:
        """Return the parameters if they have changed since the last call, else None."""
        with self._lock:
            changed, self._new_sampling = self._new_sampling, None
            return changed

    def mark_ready(self) -> None:
        """Report that the prompt is computed.

        Raises:
            SessionFailed: The client's callback raised.
        """
        self._ready.set()
        if self._on_ready is not None and not self.closed:
            self._call_back("on_ready", self._on_ready)

    def deliver(self, frame: SessionFrame) -> None:
        """Count a frame and pass it to the client, unless the session is closed.

        Raises:
            SessionFailed: The client's callback raised.
        """
        with self._lock:
            self._frames += 1
            self._late += frame.timings.total_ms > FRAME_SECONDS * 1e3
        if not self.closed:
            self._call_back("on_frame", self._on_frame, frame)

    def end(self, error: PersonaPlexError | None) -> None:
        """Report the end of the session; does nothing the second time.

        Args:
            error: Why the session ends; None if the client has closed it.
        """
        if self._ended.is_set():
            return
        self.error = error
        self._closed.set()
        try:
            try:
                self.prompts.close()
            finally:
                if self._on_end is not None:
                    self._on_end(error)
        finally:
            self._ended.set()
            self._ready.set()  # wait_ready must not wait for a session that has ended

    def _call_back(self, name: str, callback: Callable[..., object], *args: object) -> None:
        try:
            callback(*args)
        except BaseException as error:  # also CancelledError: no callback may end the thread
            raise SessionFailed(
                f"the session's {name} callback raised {type(error).__name__}: {error}"
            ) from error


def _checked(sampling: SamplingParams) -> SamplingParams:
    if not isinstance(sampling, SamplingParams):
        raise ConfigError(f"sampling must be SamplingParams, not {type(sampling).__name__}")
    return sampling
