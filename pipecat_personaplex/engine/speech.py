"""What a session's client has the agent say: checks, the thread-safe speaker, and reports.

Torch-free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from pipecat_personaplex.audio import Pcm, SpeechDetector, is_audible
from pipecat_personaplex.config import checked_text
from pipecat_personaplex.engine.speaker import SAMPLE, Speaker
from pipecat_personaplex.errors import ConfigError, SessionFailed
from pipecat_personaplex.interface import Speech, checked_hold

OnDone = Callable[[Speech], object]


class AgentSpeech:
    """The speaker of one session, shared by its client's threads and the model thread.

    Args:
        words_of: Splits a text into words with their text tokens.

    Example::

        speech = AgentSpeech(lambda text: speech_words(text, tokenizer))
        speech.say("Good morning!", "pause", print)
        code = speech.next_code(caller_pcm)  # before the step
        for on_done, done in speech.advance(next_text, agent_pcm):  # after the step
            on_done(done)
    """

    def __init__(self, words_of: Callable[[str], list[tuple[str, list[int]]]]):
        self._words_of = words_of
        self._lock = threading.Lock()  # guards the speaker, the reports and the end
        self._speaker = Speaker()
        self._on_done: dict[Speech, OnDone | None] = {}  # by speech that is not reported yet
        self._closed = False
        self._caller = SpeechDetector()  # used by the model thread alone

    # For the client, on any thread.

    def say(self, text: str, when: Literal["pause", "now"], on_done: OnDone | None) -> Speech:
        """Queue a text; see ``Session.say`` for its arguments and errors."""
        if when not in ("pause", "now"):
            raise ConfigError(f"when must be 'pause' or 'now', not {when!r}")
        # Tokenise on this thread: the model thread has no time for it.
        words = self._words_of(checked_text("the text to say", text))
        if not words:
            raise ConfigError("the text to say has no words; pass a sentence or more")
        speech = Speech(" ".join(word for word, _ in words), len(words))
        with self._lock:
            if self._closed:  # its end would not be reported
                raise SessionFailed.closed()
            self._speaker.say(speech, words, at_once=when == "now")
            self._on_done[speech] = on_done
        return speech

    def hush(self, speech: Speech | None) -> list[Speech]:
        """Cut one speech or all; see ``Session.hush``."""
        with self._lock:
            return self._speaker.hush(speech)

    def hold(self, seconds: float) -> None:
        """Keep the agent silent, except for words to say; 0 ends a hold.

        Raises:
            ConfigError: ``seconds`` is not a number from 0 to ``MAX_HOLD_SECONDS``.
        """
        checked_hold(seconds)
        with self._lock:
            self._speaker.hold(seconds)

    # For the session, on the model thread.

    def next_code(self, caller: Pcm) -> int:
        """Return the code of ``StepInput.forced_text`` for the next step.

        Args:
            caller: The caller's frame of that step, float32 [1920].
        """
        self._caller.push(caller)
        with self._lock:
            if self._speaker.idle:
                return SAMPLE
            return self._speaker.next(self._caller.speaking)

    def advance(self, next_text: int, agent: Pcm) -> list[tuple[OnDone, Speech]]:
        """Take the result of a step; return the callbacks that are due.

        Args:
            next_text: Text token that the step has placed in the next frame.
            agent: The agent's audio of this frame, float32 [1920].
        """
        with self._lock:
            self._speaker.placed(next_text)
            if self._speaker.idle:
                return []
            if self._speaker.listening:
                self._speaker.sounded(is_audible(agent))
            return self._due(self._speaker.take_finished())

    def close(self) -> list[tuple[OnDone, Speech]]:
        """Cut every speech that has not been said; return the callbacks that are due."""
        with self._lock:
            self._closed = True
            self._speaker.close()
            return self._due(list(self._on_done))

    def _due(self, speeches: list[Speech]) -> list[tuple[OnDone, Speech]]:
        """The callbacks of speeches that have ended, each once; call with the lock held."""
        callbacks = [(self._on_done.pop(speech), speech) for speech in speeches]
        return [(on_done, speech) for on_done, speech in callbacks if on_done is not None]
