"""The instructions of a session's caller that its server executes, and their results."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from pipecat_personaplex.config import Persona, SamplingParams, checked_persona, checked_text
from pipecat_personaplex.errors import (
    ConfigError,
    LimitReached,
    PersonaPlexError,
    SessionFailed,
    UserError,
)
from pipecat_personaplex.interface import Feature, Speech, checked_hold
from pipecat_personaplex.protocol.session_messages import (
    MAX_COUNT,
    MAX_SPEECHES,
    Hold,
    Hush,
    Instruction,
    Prompted,
    Release,
    Say,
    SpeechState,
    Update,
    rebuild_error,
)
from pipecat_personaplex.remote.open_instructions import (
    PromptDone,
    PromptRequest,
    Saying,
    SpeechDone,
    When,
    encode,
    require_fits,
)
from pipecat_personaplex.words import spoken_words

# A server accepts one prompt update a second; its clock and the network's delay vary.
_PROMPT_SECONDS = 1.1


class Instructions:
    """What a session's caller wants of the agent, until the server has done it.

    Callers use the first group of methods on any thread; the remote engine's thread uses the
    second. Callbacks run on the engine's thread: those of events on another thread wait until
    ``take_callbacks``.

    Everything is bounded: at most 64 speeches that are not finished, and one hold, one prompt
    update and one change of the sampling that wait to be sent; a later one replaces it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_id = 0
        self._sayings: dict[int, Saying] = {}  # not finished, in order
        self._unsent: deque[Saying | Hush] = deque()
        self._hold: Hold | Release | None = None
        self._held_until = -math.inf
        self._sampling: SamplingParams | None = None
        self._prompt: PromptRequest | None = None  # waits to be sent
        self._prompt_in_flight: PromptRequest | None = None
        self._prompt_sent = -math.inf
        self._callbacks: deque[Callable[[], object]] = deque()
        self._ended = False
        # Whether the server reports the progress of speeches; servers without it take no hush.
        self._progress = True

    # For callers, on any thread.

    def say(self, text: str, when: When, on_done: SpeechDone | None) -> Speech:
        """Queue a speech.

        Raises:
            LimitReached: Too many speeches are not finished, or the text exceeds one message.
            SessionFailed: The session has ended.
        """
        if when not in ("pause", "now"):
            raise ConfigError(f"when must be pause or now, not {when!r}")
        words = spoken_words(checked_text("the text to say", text))
        if not words:
            raise ConfigError("there is nothing to say: the text has no words")
        with self._lock:
            self._require_open()
            speech = Speech(" ".join(words), len(words))
            saying = Saying(self._next_id, speech, when, on_done, words)
            require_fits("words to say", encode(saying.message(progress=True)))
            if len(self._sayings) >= MAX_SPEECHES:
                raise LimitReached(f"{MAX_SPEECHES} texts already wait to be said")
            self._next_id += 1
            self._sayings[saying.id] = saying
            self._unsent.append(saying)
        return speech

    def hush(self, speech: Speech | None) -> list[Speech]:
        """Cut one speech or all; the server is notified of those that it has."""
        with self._lock:
            cut = [
                saying
                for saying in self._sayings.values()
                if saying.speech.state in ("waiting", "speaking")
                and speech in (None, saying.speech)
            ]
            sent = [saying for saying in cut if saying.sent]
            for saying in cut:
                saying.speech.state = "cut"
                if not saying.sent:
                    self._unsent.remove(saying)
                    self._finish(saying)
            if sent and self._progress:
                # Every speech that the server has is cut now: one message is enough for all.
                self._unsent.append(Hush() if speech is None else Hush(id=sent[0].id))
        return [saying.speech for saying in cut]

    def hold(self, seconds: float) -> None:
        """Queue a hold instead of the one that waits.

        Raises:
            ConfigError: Not a number from 0 to ``MAX_HOLD_SECONDS``.
        """
        checked_hold(seconds)
        with self._lock:
            self._hold = Hold(seconds=seconds)
            self._held_until = time.monotonic() + seconds

    def release(self) -> None:
        """Queue the end of a hold."""
        with self._lock:
            self._hold = Release()
            self._held_until = -math.inf

    def update(self, sampling: SamplingParams) -> None:
        """Queue a change of the sampling; it replaces one that still waits."""
        with self._lock:
            self._sampling = sampling

    def update_prompt(
        self, persona: Persona, history: int | None, on_done: PromptDone | None
    ) -> None:
        """Queue a new persona instead of the one that waits.

        Raises:
            ConfigError: An argument is not valid.
            LimitReached: The persona exceeds one message.
            SessionFailed: The session has ended.
        """
        checked_persona(persona)
        if history is not None and (type(history) is not int or history < 0):
            raise ConfigError(f"history must be a number of frames or None, not {history!r}")
        most = None if history is None else min(history, MAX_COUNT)  # no call is longer
        with self._lock:
            self._require_open()
            update = PromptRequest(self._next_id, persona, most, on_done)
            require_fits("persona", encode(update.message()))
            self._next_id += 1
            replaced, self._prompt = self._prompt, update
            if replaced is not None:
                self._fail(replaced, UserError("a later prompt update has replaced this one"))

    # For the remote engine's thread.

    def take(self) -> Instruction | None:
        """Return the next instruction to send; None if nothing waits."""
        with self._lock:
            if (sampling := self._sampling) is not None:
                self._sampling = None
                return Update(sampling=sampling)
            if (hold := self._hold) is not None:
                self._hold = None
                return hold
            if (prompt := self._take_prompt()) is not None:
                return prompt.message()
            if not self._unsent:
                return None
            waiting = self._unsent.popleft()
            if isinstance(waiting, Hush):
                return waiting
            waiting.sent = True
            return waiting.message(progress=self._progress)

    def _take_prompt(self) -> PromptRequest | None:
        now = time.monotonic()
        if self._prompt_in_flight is not None or now - self._prompt_sent < _PROMPT_SECONDS:
            return None
        self._prompt_in_flight, self._prompt = self._prompt, None
        if self._prompt_in_flight is not None:
            self._prompt_sent = now
        return self._prompt_in_flight

    def confirm(self, instruction: Instruction) -> None:
        """Take that the server has received an instruction.

        A server that reports no progress: its speeches count as said.
        """
        if isinstance(instruction, Say) and instruction.id is None:
            with self._lock:
                saying = next((each for each in self._sayings.values() if each.sent), None)
                if saying is not None:
                    if saying.speech.state != "cut":
                        saying.speech.state = "said"
                        saying.speech.spoken = saying.speech.words
                    self._finish(saying)

    def handle_speech(self, report: SpeechState) -> None:
        """Take the server's report of a speech; ignored if the speech is finished or unknown."""
        with self._lock:
            saying = self._sayings.get(report.id)
            if saying is None:
                return
            speech = saying.speech
            speech.spoken = max(
                speech.spoken, min(speech.words, saying.spoken_before + report.spoken)
            )
            if report.state in ("said", "cut"):
                speech.state = report.state
                self._finish(saying)
            elif speech.state == "waiting":
                speech.state = report.state

    def handle_prompted(self, report: Prompted) -> Persona | None:
        """Take the server's report of a prompt update; ignored if it is not the one in flight.

        Returns:
            The new persona if it is in effect.
        """
        with self._lock:
            update = self._prompt_in_flight
            if update is None or update.id != report.id:
                return None
            self._prompt_in_flight = None
            if not report.ok:
                self._fail(update, rebuild_error(report))
                return None
            if (on_done := update.on_done) is not None:
                self._callbacks.append(lambda: on_done(None))
            return update.persona

    def take_callbacks(self) -> list[Callable[[], object]]:
        """Remove and return the callbacks that are due, in order."""
        callbacks: list[Callable[[], object]] = []
        with self._lock:
            while self._callbacks:
                callbacks.append(self._callbacks.popleft())
        return callbacks

    def adapt(self, features: frozenset[Feature], *, progress: bool) -> None:
        """Drop what waits and the session's server does not support.

        Args:
            features: What the server supports.
            progress: Whether it reports the progress of speeches.
        """
        with self._lock:
            self._progress = progress
            if "sampling" not in features:
                self._sampling = None
            if "hold" not in features:
                self._hold = None
            if "prompt" not in features and self._prompt is not None:
                error = ConfigError("the server does not support prompt updates")
                self._fail(self._prompt, error)
                self._prompt = None
            if "say" not in features:
                self._cut_all()

    def restart(self) -> None:
        """Queue again what a new server must know: the call has moved.

        A speech that was being spoken continues with its next word. A hold continues for the rest
        of its time. A prompt update in flight is requested again.
        """
        with self._lock:
            self._unsent.clear()
            for saying in list(self._sayings.values()):
                saying.spoken_before = saying.speech.spoken
                if saying.speech.state == "cut" or saying.speech.spoken >= saying.speech.words:
                    if saying.speech.state != "cut":
                        saying.speech.state = "said"
                    self._finish(saying)
                    continue
                if saying.speech.state == "speaking":
                    saying.when = "now"
                saying.sent = False
                self._unsent.append(saying)
            held = self._held_until - time.monotonic()
            self._hold = Hold(seconds=held) if held > 0 else None
            in_flight, self._prompt_in_flight = self._prompt_in_flight, None
            self._prompt_sent = -math.inf
            if in_flight is None:
                return
            if self._prompt is None:
                self._prompt = in_flight
            else:
                self._fail(in_flight, UserError("a later prompt update has replaced this one"))

    def end(self) -> None:
        """Cut every speech and fail every prompt update: the session has ended."""
        with self._lock:
            self._ended = True
            self._cut_all()
            for update in (self._prompt_in_flight, self._prompt):
                if update is not None:
                    self._fail(update, SessionFailed("the session ended before the prompt changed"))
            self._prompt = self._prompt_in_flight = None

    # With the lock.

    def _require_open(self) -> None:
        if self._ended:
            raise SessionFailed.closed()

    def _cut_all(self) -> None:
        self._unsent.clear()
        for saying in list(self._sayings.values()):
            saying.speech.state = "cut"
            self._finish(saying)

    def _finish(self, saying: Saying) -> None:
        del self._sayings[saying.id]
        if (on_done := saying.on_done) is not None:
            self._callbacks.append(lambda: on_done(saying.speech))

    def _fail(self, update: PromptRequest, error: PersonaPlexError) -> None:
        if (on_done := update.on_done) is not None:
            self._callbacks.append(lambda: on_done(error))
