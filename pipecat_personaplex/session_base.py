"""What the sessions of every engine share: their queue, counters, callbacks and end."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from pipecat_personaplex.audio import InputQueue, Pcm, checked_pcm
from pipecat_personaplex.callbacks import CallbackAbandoned, CallbackGuard, run_all
from pipecat_personaplex.config import Persona, SamplingParams, checked_persona, checked_sampling
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import SessionFrame, SessionStats, new_session_id


class SessionBase(ABC):
    """A session from its opening to its end, on the caller's side and on the engine's thread.

    Args:
        persona: Voice and role.
        sampling: How tokens are sampled.
        on_ready: Called once on the engine's thread, when the prompt is computed.
        on_frame: Called there with each output frame.
        on_end: Called there once, as the last callback.
        wake: Wakes the engine's thread.
        callbacks: Runs the callbacks of that thread.
        max_queued_frames: Input frames that may wait.

    Attributes:
        id: The session's public id, as in the logs.
        persona: Voice and role, as in effect.
        sampling: How tokens are sampled, as last set.
        error: The error that ended the session; None if it is running or was closed.

    Raises:
        ConfigError: ``persona`` is not a ``Persona``, or ``sampling`` not a ``SamplingParams``.
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
        callbacks: CallbackGuard,
        max_queued_frames: int,
    ):
        self.id = new_session_id()
        self.persona = checked_persona(persona)
        self.sampling = checked_sampling(sampling)
        self.error: PersonaPlexError | None = None
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._on_end = on_end
        self._wake = wake
        self._callbacks = callbacks
        self._input = InputQueue(max_queued_frames)
        self._lock = threading.Lock()  # guards counters, and what callers and the engine both set
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

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the prompt is computed and frames are processed.

        Args:
            timeout: Seconds, or None for no limit. Do not call this on the engine's thread.

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
            raise SessionFailed.closed()

    def _raise_error(self) -> None:
        if self.error is not None:
            # Raise a fresh exception: re-raising one object accumulates tracebacks.
            raise SessionFailed(str(self.error)) from self.error

    # For the engine, on its thread.

    @property
    def next_index(self) -> int:
        """Index of the next output frame."""
        return self._frames

    def mark_ready(self) -> None:
        """Report that the prompt is computed.

        Raises:
            SessionFailed: The ``on_ready`` callback raised.
        """
        self._ready.set()
        if self._on_ready is not None and not self.closed:
            self._call_back("on_ready", self._on_ready)

    def _count_frame(self, *, late: bool) -> None:
        with self._lock:
            self._frames += 1
            self._late += late

    def _pass_frame(self, frame: SessionFrame) -> None:
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
        reports = [self._end_requests]
        if self._on_end is not None:
            reports.append(partial(self._call_back, "on_end", self._on_end, error))
        # The events are set even if a report raises: else a client would wait for them forever.
        run_all([*reports, self._ended.set, self._ready.set])

    @abstractmethod
    def _end_requests(self) -> None:
        """Report to their callbacks what the client has asked for and will not happen any more."""

    def abandon(self, error: PersonaPlexError) -> None:
        """End the session on another thread: its callback blocks the engine's thread."""
        self.error = error
        self._closed.set()
        self._ready.set()

    def lose_thread(self, error: PersonaPlexError) -> None:
        """End the session in a forked process, where no callback follows."""
        self.error = error
        # Fresh ones: the fork may have copied any lock in its locked state.
        self._lock, self._wake = threading.Lock(), lambda: None
        self._ready, self._closed, self._ended = (threading.Event() for _ in range(3))
        for event in (self._ready, self._closed, self._ended):
            event.set()

    def _call_back(self, name: str, callback: Callable[..., object], *args: object) -> None:
        try:
            self._callbacks.run(self, name, callback, *args)
        except CallbackAbandoned:
            raise
        except BaseException as error:  # also CancelledError: no callback may end the thread
            raise SessionFailed(
                f"the session's {name} callback raised {type(error).__name__}: {error}"
            ) from error
