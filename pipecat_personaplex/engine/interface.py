"""What callers of an engine rely on, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.engine.session import SessionFrame, SessionStats
from pipecat_personaplex.errors import PersonaPlexError


class SessionLike(Protocol):
    """What callers ask of a session; ``Session`` is one."""

    def push(self, pcm: Pcm) -> None:
        """Give the session audio; never blocks."""

    def say(self, text: str) -> None:
        """Have the agent say these words next; returns at once."""

    def update(self, sampling: SamplingParams) -> None:
        """Draw tokens in a new way from the next frame on."""

    def stats(self) -> SessionStats:
        """Counters so far."""

    def close(self) -> None:
        """End the session; its slot is free at once."""


class EngineLike(Protocol):
    """What callers ask of an engine; ``Engine`` is one."""

    @property
    def voices(self) -> list[str]:
        """Names that a persona may use."""

    @property
    def max_owed(self) -> int:
        """Frames that a session in good order may owe: given, and not answered yet."""

    @property
    def max_sessions(self) -> int:
        """Slots; 0 where that is not known."""

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> SessionLike:
        """Open a session; returns at once."""
