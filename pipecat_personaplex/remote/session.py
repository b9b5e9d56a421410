"""A session that a server on another machine computes, as its caller sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from pipecat_personaplex.audio import Pcm, QueuedFrame
from pipecat_personaplex.callbacks import (
    CallbackAbandoned,
    CallbackGuard,
    run_all,
    stuck_message,
)
from pipecat_personaplex.config import Persona, SamplingParams, checked_sampling
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import ConfigError, PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import (
    CallHistory,
    Feature,
    SessionFrame,
    Speech,
)
from pipecat_personaplex.protocol.session_messages import Prompted
from pipecat_personaplex.remote.instructions import Instructions
from pipecat_personaplex.remote.open_instructions import PromptDone, SpeechDone, When
from pipecat_personaplex.remote.record import CallRecord
from pipecat_personaplex.session_base import SessionBase


class RemoteSession(SessionBase):
    """A conversation in progress; created by ``RemoteEngine.open_session``.

    Implements ``SessionLike`` as an engine's own ``Session`` does. Callbacks run on the remote
    engine's thread. Input frames wait in the session's queue while they cannot be sent: before the
    prompt is computed, while the server is behind, and while the connection is broken. When the
    queue is full, the oldest frame is dropped and counted.

    Attributes:
        id: The session's public id in the logs. The server assigns its own id when it opens the
            session; the value changes once, before ``on_ready``. It remains when the call moves to
            another server.
        persona: Voice and role; a prompt update changes it when it is in effect.
        sampling: The sampling parameters requested last.
        error: The error that ended the session; None while it runs and after ``close``.
        instructions: What the caller wants of the agent; for the channel to the server.
        record: The call so far.

    Raises:
        ConfigError: ``persona`` is not a ``Persona`` or ``sampling`` is not a ``SamplingParams``.

    Example::

        session = engine.open_session(Persona("NATF2"), on_frame=print)
        speech = session.say("Good morning!", on_done=print)
        session.hush(speech)
        session.update_prompt(Persona("NATF2", "You sell tea."))
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
        features: frozenset[Feature],
        history: CallHistory | None = None,
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
        self.instructions = Instructions()
        self.record = CallRecord(history)
        self._features = features
        # Input frames that a lost server has not confirmed; they come before those in the queue.
        self._returned: deque[QueuedFrame] = deque()
        self._dropped_by_server = 0

    # For callers, on any thread.

    @property
    def features(self) -> frozenset[Feature]:
        """What the session's server can do; until one is chosen, what any server can do.

        What waits then and the chosen server cannot do is cut, or fails.
        """
        return self._features

    @property
    def dropped_frames(self) -> int:
        """Input frames dropped so far, here and by the server; takes no lock."""
        return super().dropped_frames + self._dropped_by_server

    def say(self, text: str, *, when: When = "pause", on_done: SpeechDone | None = None) -> Speech:
        """Have the agent speak a text, after the texts that wait already; returns at once.

        A speech that the server refuses is cut. A server without progress reports confirms that it
        has the text: the speech then counts as said, and ``hush`` has no effect there.

        Args and result are those of ``SessionLike.say``. A server without progress reports ignores
        ``when``.

        Raises:
            ConfigError: The server does not support forced speech, or the text has no words.
            LimitReached: Too many texts wait, or the text exceeds one message.
            SessionFailed: The session is over.
        """
        self._require("say")
        speech = self.instructions.say(text, when, on_done)
        self._wake()
        return speech

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        """Drop the words that have not begun, as ``SessionLike.hush``.

        A speech whose last word the server has just reached may still end as ``said``.
        """
        self._require("say")
        cut = self.instructions.hush(speech)
        self._wake()
        return cut

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for this time, as ``SessionLike.hold``."""
        self._require("hold")
        self.instructions.hold(seconds)
        self._wake()

    def release(self) -> None:
        """End a hold now, as ``SessionLike.release``."""
        self._require("hold")
        self.instructions.release()
        self._wake()

    def update_prompt(
        self, persona: Persona, *, history: int | None = None, on_done: PromptDone | None = None
    ) -> None:
        """Replace the persona while the call goes on; returns at once.

        A server takes one update a second, so an update may wait here; a later one replaces it.

        Args:
            persona: The new voice and role.
            history: How many of the newest frames to remember. At most, and by default, as many as
                leave a quarter of the window free.
            on_done: Called once on the engine's thread: with None when the new prompt is in
                effect, or with the error that left the old one in effect, ``PromptTooLong`` and
                ``VoiceNotFound`` included.

        Raises:
            ConfigError: An argument is not valid, or the server does not support this.
            LimitReached: The persona does not fit into a message.
            SessionFailed: The session is over.
        """
        self._require("prompt")
        self.instructions.update_prompt(persona, history, on_done)
        self._wake()

    def history(self) -> CallHistory:
        """The newest 3,000 frames of the call, as ``SessionLike.history``."""
        self._require_feature("history")
        return self.record.snapshot()

    def update(self, sampling: SamplingParams) -> None:
        """Sample with these parameters from the next frame on, as ``SessionLike.update``."""
        self._require("sampling")
        sampling = checked_sampling(sampling)
        with self._lock:
            self.sampling = sampling
            self.instructions.update(sampling)
        self._wake()

    def _require(self, feature: Feature) -> None:
        self._require_open()
        self._require_feature(feature)

    def _require_feature(self, feature: Feature) -> None:
        if not self._features:
            raise ConfigError(
                "NVIDIA's protocol supports neither say nor update, hold, prompt or history; use "
                "personaplex serve"
            )
        if feature not in self._features:
            raise ConfigError(
                f"the server does not support {feature}, only {', '.join(sorted(self._features))}"
            )

    # For the remote engine's thread.

    @property
    def ready(self) -> bool:
        """Whether the server has computed the prompt."""
        return self._ready.is_set()

    def adopt_id(self, server_id: str) -> None:
        """Use the id that the server has assigned, so that both logs name the session alike."""
        self.id = server_id

    def use_features(self, features: frozenset[Feature], *, progress: bool) -> None:
        """Take what the chosen server supports, and whether it reports the progress of speeches."""
        self._features = features
        self.instructions.adapt(features, progress=progress)
        self.run_callbacks()

    def take_frame(self) -> QueuedFrame | None:
        """Remove and return the oldest input frame; None if no complete frame waits."""
        return self._returned.popleft() if self._returned else self._input.take()

    def restart(self, unconfirmed: Iterable[QueuedFrame]) -> None:
        """Prepare for a new server: the call has moved.

        Args:
            unconfirmed: Input frames that the last server has not confirmed; at most those in
                flight.
        """
        self._returned.extendleft(reversed(list(unconfirmed)))
        self.instructions.restart()
        self.run_callbacks()

    def handle_prompted(self, report: Prompted) -> None:
        """Take the server's report of a prompt update."""
        persona = self.instructions.handle_prompted(report)
        if persona is not None:
            self.persona = persona

    def run_callbacks(self) -> None:
        """Run the ``on_done`` callbacks that are due.

        Raises:
            SessionFailed: A callback raised.
        """
        callbacks = self.instructions.take_callbacks()
        run_all(partial(self._call_back, "on_done", callback) for callback in callbacks)

    def count_dropped(self, frames: int) -> None:
        """Add to the frames that the server dropped; negative if a frame was counted too early."""
        with self._lock:
            self._dropped_by_server += frames

    def deliver(self, frame: SessionFrame, seconds: float, caller: Pcm | None = None) -> None:
        """Record an output frame and pass it to the caller.

        Args:
            frame: The output frame.
            seconds: Time since the last sample of its input frame was pushed.
            caller: The input frame, float32 [1920], for the record; None for no record.

        Raises:
            SessionFailed: The ``on_frame`` callback raised.
        """
        self._count_frame(late=seconds > FRAME_SECONDS)
        if caller is not None:
            self.record.add(frame, caller)
        self._pass_frame(frame)

    def _end_requests(self) -> None:
        self.instructions.end()
        self.run_callbacks()

    def _call_back(self, name: str, callback: Callable[..., object], *args: object) -> None:
        try:
            super()._call_back(name, callback, *args)
        except CallbackAbandoned as abandoned:
            raise SessionFailed(stuck_message(abandoned.call)) from None
