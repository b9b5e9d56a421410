"""What ``DelegationState`` wants done, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Purpose = Literal["answer", "filler", "sorry"]
"""What a text of the delegation is for."""


@dataclass(frozen=True)
class HoldFor:
    """Keep the agent silent for so many seconds; replaces the hold before it."""

    seconds: float


@dataclass(frozen=True)
class Release:
    """End the hold."""


@dataclass(frozen=True)
class Send:
    """Put a request to the backend, and report ``sent`` or ``send_failed``.

    Attributes:
        request: Number of the request.
        turn: The user's turn that it belongs to.
        text: First part of the request to the backend; the driver adds the transcript.
        transcript: Whether the driver adds the transcript since the last request.
    """

    request: int
    turn: int
    text: str
    transcript: bool


@dataclass(frozen=True)
class Say:
    """Speak a text at the next pause, and report ``speech_started`` and ``speech_ended``.

    Attributes:
        key: Number of the text.
        text: The words.
        purpose: What they are for.
    """

    key: int
    text: str
    purpose: Purpose


@dataclass(frozen=True)
class Cut:
    """Drop what has not been spoken of these texts; see ``Say``."""

    keys: tuple[int, ...]


@dataclass(frozen=True)
class Remember:
    """Put a fact into the prompt."""

    text: str


@dataclass(frozen=True)
class Fail:
    """Report that the backend failed; the call goes on."""

    message: str


@dataclass(frozen=True)
class Warn:
    """Log a warning about the call."""

    message: str


@dataclass(frozen=True)
class Reattach:
    """Let go of the backend, which stops its work, and attach again."""


Action = HoldFor | Release | Send | Say | Cut | Remember | Fail | Warn | Reattach
