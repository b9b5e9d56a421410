"""One client's session with the engine: audio in, frames out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from pipecat_personaplex.audio import Pcm, QueuedFrame
from pipecat_personaplex.callbacks import CallbackGuard, run_all
from pipecat_personaplex.config import Persona, SamplingParams, checked_sampling
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import (
    ALL_FEATURES,
    CallHistory,
    Feature,
    SessionFrame,
    Speech,
)
from pipecat_personaplex.session_base import SessionBase

if TYPE_CHECKING:  # the engine is a layer above; it passes these objects
    from pipecat_personaplex.engine.history import History
    from pipecat_personaplex.engine.prompt_updates import PromptUpdates
    from pipecat_personaplex.engine.speech import AgentSpeech


class Session(SessionBase):
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
        super().__init__(
            persona,
            sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=wake,
            callbacks=callbacks,
            max_queued_frames=max_queued_frames,
        )
        self._speech = speech
        self.prompts = prompts
        self.past = past
        self._new_sampling: SamplingParams | None = None

    # For the client, on any thread.

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
            when: ``pause`` waits for a pause: at most 2.4 s for the agent's own words, and at
                most 10 s for a caller who speaks; ``now`` begins in the next frame.
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
            history: How many of the newest frames to remember. At most, and by default, as many as
                leave a quarter of the window free.
            on_done: Called once on the model thread, before ``on_end``; must return at once. With
                None, or with the error that left the old prompt in effect: a later one has
                replaced this one, the session has ended, or it could not be computed.

        Raises:
            UserError: The prompt is too long, the voice unknown, or an argument invalid.
            SessionFailed: The session is over.
        """
        self._require_open()
        done = None if on_done is None else partial(self._call_back, "on_done", on_done)
        self.prompts.request(persona, history, done)
        self._wake()

    def history(self) -> CallHistory:
        """The newest frames of the call, for ``open_session`` of this or another engine."""
        return self.past.snapshot()

    # For the engine, on the model thread.

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

    def lose_thread(self, error: PersonaPlexError) -> None:
        """End the session in a forked process; its history can still be read."""
        super().lose_thread(error)
        self.past.renew_lock()

    def take_new_sampling(self) -> SamplingParams | None:
        """Return the parameters if they have changed since the last call, else None."""
        with self._lock:
            changed, self._new_sampling = self._new_sampling, None
            return changed

    def deliver(self, frame: SessionFrame, next_text: int) -> None:
        """Count a frame and pass it to the client, unless the session is closed.

        Args:
            frame: The frame.
            next_text: Text token that its step has placed in the next frame.

        Raises:
            SessionFailed: The client's callback raised.
        """
        self._count_frame(late=frame.timings.total_ms > FRAME_SECONDS * 1e3)
        finished = self._speech.advance(next_text, frame.pcm)
        run_all([partial(self._pass_frame, frame), *self._reports(finished)])

    def _end_requests(self) -> None:
        run_all([*self._reports(self._speech.close()), self.prompts.close])

    def _reports(
        self, finished: list[tuple[Callable[[Speech], object], Speech]]
    ) -> list[Callable[[], None]]:
        return [
            partial(self._call_back, "on_done", on_done, speech) for on_done, speech in finished
        ]

    def abandon(self, error: PersonaPlexError) -> None:
        """End the session on another thread; ``end`` follows when its callback has returned."""
        super().abandon(error)
        # Callbacks that follow on the lost thread must not disturb the guard of the new one.
        self._callbacks = CallbackGuard()
