"""A session that a server on another machine computes, as its caller sees it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from pipecat_personaplex.audio import InputQueue, Pcm, QueuedFrame, checked_pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import ConfigError, LimitReached, PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import SessionFrame, SessionStats, new_session_id
from pipecat_personaplex.protocol.session_messages import MAX_MESSAGE_BYTES, Say

_MAX_UNSENT_TEXTS = 64


class RemoteSession:
    """A conversation in progress; created by ``RemoteEngine.open_session``.

    Implements ``SessionLike`` as an engine's own ``Session`` does. Callbacks run on the remote
    engine's thread. Input frames wait in the session's queue while they cannot be sent: before the
    prompt is computed, while the server is behind, and while the connection is broken. When the
    queue is full, the oldest frame is dropped and counted.

    Attributes:
        id: The session's public id in the logs. The server assigns its own id when it opens the
            session; the value changes once, before ``on_ready``.
        persona: Voice and role.
        sampling: The sampling parameters requested last.
        error: The error that ended the session; None while it runs and after ``close``.
        control_refusal: Why this session refuses ``say`` and ``update``; empty if it supports them.

    Raises:
        ConfigError: ``persona`` is not a ``Persona`` or ``sampling`` is not a ``SamplingParams``.
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
        max_queued_frames: int,
        control_refusal: str = "",
    ):
        if not isinstance(persona, Persona):
            raise ConfigError(
                f"persona must be a Persona (voice and text_prompt), not {type(persona).__name__}"
            )
        self.id = new_session_id()
        self.persona = persona
        self.sampling = _validated(sampling)
        self.error: PersonaPlexError | None = None
        self.control_refusal = control_refusal
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._on_end = on_end
        self._wake = wake
        self._input = InputQueue(max_queued_frames)
        # Guards the fields that callers and the engine's thread both change.
        self._lock = threading.Lock()
        # Bounded by _MAX_UNSENT_TEXTS: at the limit, say() raises LimitReached.
        self._unsent_texts: deque[str] = deque()
        self._unsent_sampling: SamplingParams | None = None
        self._frames = 0
        self._late_frames = 0
        self._dropped_by_server = 0
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._ended = threading.Event()

    # For callers, on any thread.

    @property
    def closed(self) -> bool:
        """Whether the session is over, by ``close`` or by an error."""
        return self._closed.is_set()

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far, here and by the server; takes no lock."""
        return self._input.dropped + self._dropped_by_server

    def push(self, pcm: Pcm) -> None:
        """Queue the caller's audio; never blocks.

        Args:
            pcm: float32 [n], mono, 24 kHz, any length; samples outside -1 to 1 are clipped.

        Raises:
            InvalidAudio: ``pcm`` is not finite float32 mono. Nothing is queued; the session
                continues.
            SessionFailed: The session is over.
        """
        self._require_open()
        if self._input.push(checked_pcm(pcm), time.monotonic()):
            self._wake()

    def say(self, text: str) -> None:
        """Have the agent say these words next, after any that still wait.

        Returns at once. If the server then refuses the words as too many, that is only logged.

        Args:
            text: A sentence or more, in plain words.

        Raises:
            ConfigError: The server does not support forced speech.
            LimitReached: Too many texts wait to be sent, or the text exceeds one message.
            SessionFailed: The session is over.
        """
        self._require_open()
        self._require_control()
        require_fits("words to say", Say(text=text).model_dump_json())
        with self._lock:
            if len(self._unsent_texts) >= _MAX_UNSENT_TEXTS:
                raise LimitReached(f"{_MAX_UNSENT_TEXTS} texts already wait to be sent")
            self._unsent_texts.append(text)
        self._wake()

    def update(self, sampling: SamplingParams) -> None:
        """Sample with these parameters from the next frame on.

        Raises:
            ConfigError: ``sampling`` is not a ``SamplingParams``, or the server cannot change it.
            SessionFailed: The session is over.
        """
        self._require_open()
        self._require_control()
        sampling = _validated(sampling)
        with self._lock:
            self.sampling = self._unsent_sampling = sampling
        self._wake()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the server has computed the prompt and processes frames.

        Args:
            timeout: Seconds; None for no limit. Do not call on the remote engine's thread.

        Returns:
            Whether the session is ready.

        Raises:
            SessionFailed: The session ended with an error.
        """
        ready = self._ready.wait(timeout)
        self._raise_error()
        return ready and not self.closed

    def close(self) -> None:
        """End the session; never blocks. The server frees its slot."""
        self._closed.set()
        self._wake()

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until ``on_end`` has returned; no callback runs after it."""
        return self._ended.wait(timeout)

    def stats(self) -> SessionStats:
        """Counters so far."""
        with self._lock:
            frames, late_frames = self._frames, self._late_frames
        return SessionStats(frames, late_frames, self.dropped_frames, self._input.queued)

    def _require_open(self) -> None:
        if self.closed:
            self._raise_error()
            raise SessionFailed("the session is closed; open another")

    def _require_control(self) -> None:
        if self.control_refusal:
            raise ConfigError(self.control_refusal)

    def _raise_error(self) -> None:
        if self.error is not None:
            # Raise a fresh exception: re-raising one object accumulates tracebacks.
            raise SessionFailed(str(self.error)) from self.error

    # For the remote engine's thread.

    @property
    def ready(self) -> bool:
        """Whether the server has computed the prompt."""
        return self._ready.is_set()

    def adopt_id(self, server_id: str) -> None:
        """Use the id that the server has assigned, so that both logs name the session alike."""
        self.id = server_id

    def take_frame(self) -> QueuedFrame | None:
        """Remove and return the oldest input frame; None if no complete frame waits."""
        return self._input.take()

    def take_text(self) -> str | None:
        """Remove and return the oldest text of ``say`` that has not been sent; None if none."""
        with self._lock:
            return self._unsent_texts.popleft() if self._unsent_texts else None

    def take_sampling(self) -> SamplingParams | None:
        """Return the parameters of the latest ``update`` if they have not been sent."""
        with self._lock:
            sampling, self._unsent_sampling = self._unsent_sampling, None
            return sampling

    def count_dropped(self, frames: int) -> None:
        """Add to the frames that the server dropped; negative if a frame was counted too early."""
        with self._lock:
            self._dropped_by_server += frames

    def mark_ready(self) -> None:
        """Report that the server has computed the prompt.

        Raises:
            SessionFailed: The ``on_ready`` callback raised.
        """
        self._ready.set()
        if self._on_ready is not None and not self.closed:
            self._call_back("on_ready", self._on_ready)

    def deliver(self, frame: SessionFrame, seconds: float) -> None:
        """Pass an output frame to the caller.

        Args:
            frame: The output frame.
            seconds: Time since the last sample of its input frame was pushed.

        Raises:
            SessionFailed: The ``on_frame`` callback raised.
        """
        with self._lock:
            self._frames += 1
            self._late_frames += seconds > FRAME_SECONDS
        if not self.closed:
            self._call_back("on_frame", self._on_frame, frame)

    def end(self, error: PersonaPlexError | None) -> None:
        """Report the end to the caller; does nothing the second time."""
        if self._ended.is_set():
            return
        self.error = error
        self._closed.set()
        try:
            if self._on_end is not None:
                self._on_end(error)
        finally:
            self._ended.set()
            self._ready.set()  # wakes wait_ready, which then raises the error

    def _call_back(self, name: str, callback: Callable[..., object], *args: object) -> None:
        try:
            callback(*args)
        except BaseException as error:  # also CancelledError: no callback may end the thread
            raise SessionFailed(
                f"the session's {name} callback raised {type(error).__name__}: {error}"
            ) from error


def _validated(sampling: SamplingParams) -> SamplingParams:
    if not isinstance(sampling, SamplingParams):
        raise ConfigError(f"sampling must be SamplingParams, not {type(sampling).__name__}")
    return sampling


def require_fits(what: str, message: str) -> None:
    """Refuse a message that is too long for a server, which would close the connection.

    Args:
        what: What the message contains, for the error.
        message: The message as JSON.

    Raises:
        LimitReached: The message is too long.
    """
    size = len(message.encode())
    if size > MAX_MESSAGE_BYTES:
        raise LimitReached(
            f"the {what} need a message of {size} bytes; a server accepts {MAX_MESSAGE_BYTES}"
        )
