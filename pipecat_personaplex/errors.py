"""The errors of this package, as one tree.

PersonaPlexError
├── UserError                 something the caller can correct; the CLI exits with 2
│   ├── ConfigError           an option or a checkpoint's config.json
│   ├── CheckpointError       a checkpoint file that is missing, cut off or of the wrong shape
│   │   └── DownloadError     a Hub repository that cannot be fetched
│   ├── VoiceError            a voice file that cannot be read
│   │   └── VoiceNotFound     a voice name that the engine does not have
│   ├── BadMessage            a message that does not follow the protocol
│   ├── AccessDenied          a key or an origin that the server rejects
│   ├── LimitReached          a limit that the server imposes on its clients
│   ├── SpeechTooLong         more forced speech than a session may queue
│   ├── PromptTooLong         a prompt of more frames than the model supports
│   └── InvalidAudio          samples that are not finite float32 mono
└── EngineError               the engine cannot serve
    ├── EngineFull            every slot is taken
    ├── EngineStopped         the engine is not running
    ├── EngineDraining        the server is stopping and takes no new sessions
    ├── EngineUnreachable     no server answers, or it is not a PersonaPlex server
    ├── EngineFailed          the device or the model thread failed; every session ends
    └── SessionFailed         one session ends; the others go on
        └── SessionLost       the server no longer has the session
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AccessDenied",
    "BadMessage",
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "EngineDraining",
    "EngineError",
    "EngineFailed",
    "EngineFull",
    "EngineStopped",
    "EngineUnreachable",
    "InvalidAudio",
    "LimitReached",
    "PersonaPlexError",
    "PromptTooLong",
    "SessionFailed",
    "SessionLost",
    "SpeechTooLong",
    "UserError",
    "VoiceError",
    "VoiceNotFound",
]


class PersonaPlexError(Exception):
    """Base class of all errors of this package. The message is one line for a person to read."""


class UserError(PersonaPlexError):
    """Something the caller can correct."""


class ConfigError(UserError):
    """An option or a checkpoint's ``config.json`` has an invalid value."""


class CheckpointError(UserError):
    """A checkpoint file is missing, cut off or of the wrong shape."""


class DownloadError(CheckpointError):
    """A Hub repository cannot be fetched."""


class VoiceError(UserError):
    """A voice file cannot be read."""


def _shortened(name: str) -> str:
    """A name that a client chose, for a line of a log."""
    return name if len(name) <= 100 else f"{name[:100]}…"


class VoiceNotFound(VoiceError):
    """A voice name that the engine does not have.

    Args:
        name: The requested name.
        known: The names of the voices that the engine has.
    """

    def __init__(self, name: str, known: Sequence[str]):
        self.name = name
        self.known = sorted(known)
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"voice {_shortened(name)!r} is unknown; this checkpoint has: {listed}")


class PromptTooLong(UserError):
    """A prompt of more frames than the model supports.

    Args:
        frames: Frames (80 ms) of the prompt: voice, silences and text.
        limit: The largest number of frames that is accepted.
    """

    def __init__(self, frames: int, limit: int):
        self.frames = frames
        self.limit = limit
        super().__init__(
            f"the prompt takes {frames} frames (voice, text and silences), and at most {limit} are "
            f"accepted; shorten the text prompt, or the voice's recording, by {frames - limit}"
        )


class SpeechTooLong(UserError):
    """More forced speech than a session may queue.

    Args:
        frames: Frames (80 ms) of the speech, including what is queued already.
        limit: Frames that may be queued.
    """

    def __init__(self, frames: int, limit: int):
        self.frames = frames
        self.limit = limit
        super().__init__(
            f"the queued speech would take {frames} frames of 80 ms and at most {limit} may wait; "
            "say less at once"
        )


class BadMessage(UserError):
    """A message that does not follow the protocol."""


class AccessDenied(UserError):
    """A key or an origin that the server rejects."""


class LimitReached(UserError):
    """A limit that the server imposes on its clients."""


class InvalidAudio(UserError):
    """Samples that are not finite float32 mono."""


class EngineError(PersonaPlexError):
    """The engine cannot serve."""


class EngineFull(EngineError):
    """Every slot is taken.

    Args:
        max_sessions: The engine's number of slots.
    """

    def __init__(self, max_sessions: int):
        self.max_sessions = max_sessions
        super().__init__(
            f"all {max_sessions} sessions are taken; close one, or start the engine with a "
            "larger max_sessions"
        )


class EngineStopped(EngineError):
    """The engine is not running."""


class EngineDraining(EngineError):
    """The server is stopping and takes no new sessions."""


class EngineUnreachable(EngineError):
    """No server answers, or it is not a PersonaPlex server."""


class EngineFailed(EngineError):
    """The device or the model thread failed; every session ends."""


class SessionFailed(EngineError):
    """One session ends with an error; the others go on."""

    @classmethod
    def closed(cls) -> SessionFailed:
        """The error of a request to a session that has ended."""
        return cls("the session is closed; open another")


class SessionLost(SessionFailed):
    """The server no longer has the session."""
