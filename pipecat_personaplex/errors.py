"""Every error this project raises on purpose, as one tree.

PersonaPlexError
├── UserError                 something the caller can put right; the CLI exits with 2
│   ├── ConfigError           an option or a checkpoint's config.json
│   ├── CheckpointError       a checkpoint file that is missing, cut off or of the wrong shape
│   │   └── DownloadError     a Hub repository that cannot be fetched
│   ├── VoiceError            a voice file that cannot be read
│   │   └── VoiceNotFound     a voice name nobody knows
│   ├── BadMessage            a message that does not follow the protocol
│   ├── AccessDenied          a key or an origin that the server does not take
│   ├── LimitReached          a limit that the server sets its clients
│   ├── SpeechTooLong         more words than may wait to be said
│   ├── PromptTooLong         a text prompt that leaves no room in the model's window
│   └── InvalidAudio          samples that are not finite float32 mono
└── EngineError               the engine cannot serve
    ├── EngineFull            every slot is taken
    ├── EngineStopped         the engine is not running
    ├── EngineDraining        the server is stopping and takes no new sessions
    ├── EngineUnreachable     no server answers, or not as one of ours does
    ├── EngineFailed          the device or the model thread failed; every session ends
    └── SessionFailed         one session ends; the others go on
        └── SessionLost       the server does not know the session any more
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
    """The root of the tree: one clear line for a person to read."""


class UserError(PersonaPlexError):
    """Something the caller can put right."""


class ConfigError(UserError):
    """An option or a checkpoint's ``config.json`` has a value that cannot work."""


class CheckpointError(UserError):
    """A checkpoint file is missing, cut off or of the wrong shape."""


class DownloadError(CheckpointError):
    """A Hub repository cannot be fetched."""


class VoiceError(UserError):
    """A voice file cannot be read."""


class VoiceNotFound(VoiceError):
    """A voice name that the engine does not know.

    Args:
        name: What was asked for.
        known: The names there are.
    """

    def __init__(self, name: str, known: Sequence[str]):
        self.name = name
        self.known = sorted(known)
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"voice {name!r} is unknown; this checkpoint has: {listed}")


class PromptTooLong(UserError):
    """A prompt that does not fit.

    Args:
        frames: Frames (80 ms) that the prompt takes.
        limit: Frames there is room for.
    """

    def __init__(self, frames: int, limit: int):
        self.frames = frames
        self.limit = limit
        super().__init__(
            f"the prompt takes {frames} frames (voice, text and silences) and the model attends "
            f"to {limit}; shorten the text prompt by at least {frames - limit} tokens"
        )


class SpeechTooLong(UserError):
    """More words than a session lets wait to be said.

    Args:
        frames: Frames (80 ms) that they would take, with those that wait already.
        limit: Frames there is room for.
    """

    def __init__(self, frames: int, limit: int):
        self.frames = frames
        self.limit = limit
        super().__init__(
            f"the words would take {frames} frames to say and {limit} may wait; say less at once"
        )


class BadMessage(UserError):
    """A message that does not follow the protocol."""


class AccessDenied(UserError):
    """A key or an origin that the server does not take."""


class LimitReached(UserError):
    """A limit that the server sets its clients."""


class InvalidAudio(UserError):
    """Samples that are not finite float32 mono."""


class EngineError(PersonaPlexError):
    """The engine cannot serve."""


class EngineFull(EngineError):
    """Every slot is taken.

    Args:
        max_sessions: How many sessions the engine was started with.
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
    """No server answers, or not as one of ours does."""


class EngineFailed(EngineError):
    """The device or the model thread failed; every session ends."""


class SessionFailed(EngineError):
    """One session ends with an error; the others go on."""


class SessionLost(SessionFailed):
    """The server does not know the session any more."""
