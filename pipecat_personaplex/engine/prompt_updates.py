"""The new prompts that a client has requested for one session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipecat_personaplex.callbacks import run_all
from pipecat_personaplex.config import Persona, checked_persona
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.errors import ConfigError, EngineError, PersonaPlexError, SessionFailed

OnDone = Callable[[PersonaPlexError | None], object]


@dataclass(frozen=True, eq=False)
class PromptUpdate:
    """A request to replace the prompt of a running session.

    Attributes:
        persona: The new persona.
        prompt: Its prompt.
        history: Newest frames to remember, as for ``SessionLike.update_prompt``.
        on_done: Runs the client's callback, if any; raises ``SessionFailed`` if that raises.
        requested: When it was requested, in monotonic seconds.
    """

    persona: Persona
    prompt: Prompt
    history: int | None
    on_done: OnDone | None
    requested: float = field(default_factory=time.monotonic)


class PromptUpdates:
    """The requests of one session; every accepted one is reported to its ``on_done`` once.

    At most one request waits: a later one replaces it. One that has begun is finished first.

    Args:
        build: Makes the prompt of a persona. It may raise ``UserError``.

    Attributes:
        waiting: The newest request that has not begun. The model thread reads it without the lock.
    """

    def __init__(self, build: Callable[[Persona], Prompt]):
        self._build = build
        self._lock = threading.Lock()
        self._replaced: list[PromptUpdate] = []  # to be reported
        self._current: PromptUpdate | None = None
        self._closed = False
        self.waiting: PromptUpdate | None = None

    def request(self, persona: Persona, history: int | None, on_done: OnDone | None) -> None:
        """Request a new prompt; safe on any thread.

        Raises:
            UserError: The prompt does not fit, the voice is unknown, or an argument is invalid.
            SessionFailed: The session is over.
        """
        checked_persona(persona)
        if history is not None and (type(history) is not int or history < 0):
            raise ConfigError(
                f"history must be a number of frames of at least 0, or None, not {history!r}"
            )
        prompt = self._build(persona)
        with self._lock:
            if self._closed:
                raise SessionFailed.closed()
            if self.waiting is not None:
                self._replaced.append(self.waiting)
            self.waiting = PromptUpdate(persona, prompt, history, on_done)

    # For the engine, on the model thread.

    @property
    def in_progress(self) -> bool:
        """Whether a request has begun and its result is not reported."""
        return self._current is not None

    def begin(self) -> PromptUpdate:
        """Take the waiting request and report those that it has replaced.

        Raises:
            SessionFailed: A callback of the client raised.
        """
        with self._lock:
            assert self.waiting is not None
            update, self.waiting = self.waiting, None
            replaced, self._replaced = self._replaced, []
            self._current = update
        _report(replaced, EngineError("a later prompt has replaced this one before it began"))
        return update

    def finish(self, error: PersonaPlexError | None) -> None:
        """Report the result of the request that has begun, if it has not been reported.

        Args:
            error: Why the old prompt is still in effect; None if the new one is.

        Raises:
            SessionFailed: A callback of the client raised.
        """
        with self._lock:
            update, self._current = self._current, None
        if update is not None:
            _report([update], error)

    def close(self) -> None:
        """Refuse further requests and report the open ones, because the session is over.

        Raises:
            SessionFailed: A callback of the client raised.
        """
        with self._lock:
            self._closed = True
            dropped = [*self._replaced, self._current, self.waiting]
            self._replaced, self._current, self.waiting = [], None, None
        _report(
            [update for update in dropped if update is not None],
            SessionFailed("the session ended before the new prompt took effect"),
        )


def _report(updates: list[PromptUpdate], error: PersonaPlexError | None) -> None:
    run_all(partial(update.on_done, error) for update in updates if update.on_done is not None)
