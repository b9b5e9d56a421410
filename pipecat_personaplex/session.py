"""One client's session with the engine: audio in, frames out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Literal

from pipecat_personaplex.audio import InputQueue, Pcm, QueuedFrame, checked_pcm
from pipecat_personaplex.callbacks import CallbackAbandoned, CallbackGuard
from pipecat_personaplex.config import Persona, SamplingParams, checked_persona, checked_sampling
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import (
    ALL_FEATURES,
    CallHistory,
    Feature,
    SessionFrame,
    SessionStats,
    Speech,
    new_session_id,
)

if TYPE_CHECKING:  # the engine is a layer above; it passes these objects
    from pipecat_personaplex.engine.history import History
    from pipecat_personaplex.engine.prompt_updates import PromptUpdates
    from pipecat_personaplex.engine.speech import AgentSpeech


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
        callbacks: CallbackGuard,
        speech: AgentSpeech,
        prompts: PromptUpdates,
        past: History,
        max_queued_frames: int,
    ):
        self.id = new_session_id()
        self.persona = checked_persona(persona)
        self.sampling = checked_sampling(sampling)
        self.error: PersonaPlexError | None = None
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._on_end = on_end
        self._wake = wake  # wakes the model thread
        self._callbacks = callbacks
        self._speech = speech
        self.prompts = prompts
        self.past = past
        self._input = InputQueue(max_queued_frames)
        self._lock = threading.Lock()  # guards new sampling and counters
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

    @property
    def features(self) -> frozenset[Feature]:
        """What this session can do."""
        return ALL_FEATURES

    def say(
        self,
        text: str,
        *,
        when: Literal["pause", "now"] = "pause",
        on_done: Callable[[Speech], object] | None = None,
    ) -> Speech:
        """Have the agent speak this text, after the texts that wait already.

        The words are forced into the inner monologue at the model's own pace. The model generates
        the sound and samples it as always; its own words continue afterwards. While the caller
        speaks, the words wait where the model itself is silent; each one for 10 s at most.

        Args:
            text: A sentence or more, in plain words.
            when: ``pause`` waits until neither the agent nor the caller speaks, for at most 2.4 s
                and 10 s; ``now`` begins in the next frame.
            on_done: Called once, on the model thread, when the text was said or cut; must return
                at once. Words that have not begun when the session ends are cut.

        Returns:
            A handle that shows the progress.

        Raises:
            ConfigError: The text has no words or is not valid, or ``when`` is unknown. Nothing is
                queued.
            SpeechTooLong: More than two minutes of speech would wait. Nothing is queued.
            SessionFailed: The session is over.
        """
        self._require_open()
        return self._speech.say(text, when, on_done)

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        """Drop the words that have not begun, as ``SessionLike.hush``.

        A speech whose last word has begun has nothing to drop: it will be said.
        """
        self._require_open()
        return self._speech.hush(speech)

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for this time, except for words to say. A new hold replaces it.

        Args:
            seconds: From 0 to ``MAX_HOLD_SECONDS`` (30), in time of the caller's audio.

        Raises:
            ConfigError: ``seconds`` is not a number in this range.
            SessionFailed: The session is over.
        """
        self._require_open()
        self._speech.hold(seconds)

    def release(self) -> None:
        """End a hold now; does nothing without one."""
        self._require_open()
        self._speech.hold(0)

    def update(self, sampling: SamplingParams) -> None:
        """Sample tokens with these parameters from the next frame on.

        Raises:
            ConfigError: ``sampling`` is not a ``SamplingParams``.
            SessionFailed: The session is over.
        """
        self._require_open()
        with self._lock:
            self.sampling = self._new_sampling = checked_sampling(sampling)

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
        done = None if on_done is None else partial(self._run_callback, "on_done", on_done)
        self.prompts.request(persona, history, done)
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
        """Remove and return the oldest complete input frame; None if no frame waits."""
        return self._input.take()

    def next_forced_text(self, pcm: Pcm) -> int:
        """Return what the next step places in the inner monologue.

        Args:
            pcm: The caller's frame of that step, float32 [1920].

        Returns:
            A code of ``StepInput.forced_text``; -1 lets the model sample.
        """
        return self._speech.next_code(pcm)

    def take_new_sampling(self) -> SamplingParams | None:
        """Return the parameters if they have changed since the last call, else None."""
        with self._lock:
            changed, self._new_sampling = self._new_sampling, None
            return changed

    def mark_ready(self) -> None:
        """Report that the prompt is computed; raises as ``deliver``."""
        self._ready.set()
        if self._on_ready is not None and not self.closed:
            self._call_back("on_ready", self._on_ready)

    def deliver(self, frame: SessionFrame, next_text: int) -> None:
        """Count a frame and pass it to the client, unless the session is closed.

        Args:
            frame: The frame.
            next_text: Text token that its step has placed in the next frame.

        Raises:
            SessionFailed: The client's callback raised.
        """
        with self._lock:
            self._frames += 1
            self._late += frame.timings.total_ms > FRAME_SECONDS * 1e3
        finished = self._speech.advance(next_text, frame.pcm)
        try:
            if not self.closed:
                self._call_back("on_frame", self._on_frame, frame)
        finally:
            if finished:
                self._report(finished)

    def end(self, error: PersonaPlexError | None) -> None:
        """Report the end of the session; does nothing the second time.

        Args:
            error: Why the session ends; None if the client has closed it.
        """
        if self._ended.is_set():
            return
        self.error = error
        self._closed.set()
        with ExitStack() as callbacks:  # called in reverse order, all of them even if one raises
            callbacks.callback(self._ready.set)  # wait_ready must not wait for an ended session
            callbacks.callback(self._ended.set)
            if self._on_end is not None:
                callbacks.callback(self._run_callback, "on_end", self._on_end, error)
            callbacks.callback(self.prompts.close)
            callbacks.callback(self._report, self._speech.close())

    def _report(self, finished: list[tuple[Callable[[Speech], object], Speech]]) -> None:
        with ExitStack() as callbacks:  # as in ``end``: a speech has no other report
            for on_done, speech in reversed(finished):
                callbacks.callback(self._call_back, "on_done", on_done, speech)

    def abandon(self, error: PersonaPlexError) -> None:
        """End the session on another thread; ``end`` follows when its callback has returned."""
        self.error = error
        # Callbacks that follow on the lost thread must not disturb the guard of the new one.
        self._callbacks = CallbackGuard()
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

    def _run_callback(self, name: str, callback: Callable[..., object], *args: object) -> None:
        self._callbacks.run(self, name, callback, *args)

    def _call_back(self, name: str, callback: Callable[..., object], *args: object) -> None:
        try:
            self._callbacks.run(self, name, callback, *args)
        except CallbackAbandoned:
            raise
        except BaseException as error:  # also CancelledError: no callback may end the thread
            raise SessionFailed(
                f"the session's {name} callback raised {type(error).__name__}: {error}"
            ) from error
