"""What a call reports, in order, beside the output frames of its sessions."""

from __future__ import annotations

from dataclasses import dataclass

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import SessionFrame, Speech


@dataclass(frozen=True)
class SessionStarted:
    """A session has become the active one: it receives the caller's audio from now on."""

    persona: Persona
    session_id: str


@dataclass(frozen=True)
class SessionEnded:
    """The active or draining session has ended, or the first session failed before it was ready.

    Attributes:
        persona: The session's persona.
        session_id: The session's public id.
        error: None if the session was closed on purpose.
    """

    persona: Persona
    session_id: str
    error: PersonaPlexError | None


@dataclass(frozen=True)
class PromptChanged:
    """The active session has a new persona from now on, and remembers the call."""

    persona: Persona
    session_id: str


@dataclass(frozen=True)
class PersonaRejected:
    """A new persona has failed; the active session continues with the persona that it has."""

    persona: Persona
    session_id: str
    error: PersonaPlexError | None


@dataclass(frozen=True)
class SpeechRejected:
    """The session refused to speak a text."""

    text: str
    session_id: str
    error: PersonaPlexError


@dataclass(frozen=True)
class SpeechStarted:
    """The agent begins to speak a text."""

    speech: Speech
    session_id: str


@dataclass(frozen=True)
class SpeechEnded:
    """A text was spoken completely, or cut; its ``state`` tells which."""

    speech: Speech
    session_id: str


Event = (
    SessionFrame
    | SessionStarted
    | SessionEnded
    | PromptChanged
    | PersonaRejected
    | SpeechRejected
    | SpeechStarted
    | SpeechEnded
)
