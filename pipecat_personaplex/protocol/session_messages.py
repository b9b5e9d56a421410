"""The JSON messages of ``/v1/session``, and the conversion of errors to messages and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipecat_personaplex import errors
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import MAX_HISTORY_FRAMES
from pipecat_personaplex.errors import BadMessage, PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import MAX_HOLD_SECONDS, Feature

VERSION = 1
SESSION_PATH = "/v1/session"
SUBPROTOCOL = "personaplex.v1"
BEARER_SUBPROTOCOL = "bearer."
"""Prefix of the key in a browser's subprotocol: a browser cannot send an Authorization header."""
MAX_MESSAGE_BYTES = 64 << 10
MAX_HISTORY_AUDIO_FRAMES = 32
"""Frames of the caller's audio that ``Open`` may send with them."""
MAX_SPEECHES = 64
"""Speeches of a session that may wait or be spoken at once."""
BASIC_FEATURES: frozenset[Feature] = frozenset({"say", "sampling"})
"""What a server without the field ``features`` in its hello supports."""

# More than any server has, and small enough that sums stay exact.
MAX_COUNT = 10**6

_Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]

# A public id is written to logs: it must not contain spaces or line breaks.
_PublicId = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{0,64}$")]

AudioFormat = Literal["pcm16", "opus"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _FromServer(_Message):
    # A later server may send fields that this client does not know.
    model_config = ConfigDict(extra="ignore")


class Hello(_FromServer):
    """From the server: its model, voices and slots; the first message of every connection.

    Attributes:
        features: What its sessions can do, as ``Feature``, and perhaps features that this client
            does not know; None from a server that is older than this field.
    """

    type: Literal["hello"] = "hello"
    version: int = VERSION
    model: str
    voices: list[str]
    sessions: _Count
    max_sessions: _Count
    draining: bool
    features: list[str] | None = None


class Open(_Message):
    """From a client: open a session.

    Attributes:
        history: Frames of the call that the session continues; binary messages with their tokens
            follow. None for a new call.
        history_audio: Frames of the caller's audio in the messages after them.
    """

    type: Literal["open"] = "open"
    voice: str
    text_prompt: str = ""
    sampling: SamplingParams = Field(default_factory=SamplingParams)
    audio: AudioFormat = "pcm16"
    history: Annotated[int, Field(ge=1, le=MAX_HISTORY_FRAMES)] | None = None
    history_audio: Annotated[int, Field(ge=0, le=MAX_HISTORY_AUDIO_FRAMES)] | None = None


class Opened(_FromServer):
    """From the server: the session has a slot.

    Attributes:
        session: A secret that ``Resume`` requires.
        resume_seconds: How long the session waits for a client whose connection broke.
        id: The session's public id, as in the server's log; empty from a server without ids.
    """

    type: Literal["opened"] = "opened"
    session: str
    resume_seconds: float
    id: _PublicId = ""


class Ready(_FromServer):
    """From the server: the prompt is computed; frames are processed."""

    type: Literal["ready"] = "ready"


class Resume(_Message):
    """From a client: continue a session whose connection broke.

    Attributes:
        session: The secret of ``Opened``.
        next_frame: The output frame that the client expects next.
    """

    type: Literal["resume"] = "resume"
    session: str
    next_frame: int = Field(ge=0)


class Resumed(_FromServer):
    """From the server: the session continues.

    Attributes:
        next_frame: The input frame that the server expects next.
        ready: Whether the prompt is computed.
        instructions: Instructions that the server has received in this session; None from a server
            that is older than this field.
    """

    type: Literal["resumed"] = "resumed"
    next_frame: int = Field(ge=0)
    ready: bool
    instructions: Annotated[int, Field(ge=0)] | None = None


class Say(_Message):
    """From a client: words that the agent says.

    Attributes:
        id: Larger than those before it in the session; ``SpeechState`` then reports the progress.
            None for no report.
        when: As ``SessionLike.say``; None for its default.
    """

    type: Literal["say"] = "say"
    text: str
    id: _Id | None = None
    when: Literal["pause", "now"] | None = None


class Hush(_Message):
    """From a client: drop the words that have not begun, of one speech or of all.

    Attributes:
        id: The speech; None for all.
    """

    type: Literal["hush"] = "hush"
    id: _Id | None = None


class Hold(_Message):
    """From a client: keep the agent silent for some seconds, except for words to say."""

    type: Literal["hold"] = "hold"
    seconds: float = Field(ge=0, le=MAX_HOLD_SECONDS, allow_inf_nan=False)


class Release(_Message):
    """From a client: end a hold now."""

    type: Literal["release"] = "release"


class UpdatePrompt(_Message):
    """From a client: replace the persona; ``Prompted`` reports the result.

    Attributes:
        id: Repeated in ``Prompted``.
        history: Newest frames of the call to remember; None for all that leave room for the call.
    """

    type: Literal["prompt"] = "prompt"
    id: _Id = 0
    voice: str
    text_prompt: str = ""
    history: _Count | None = None


class Update(_Message):
    """From a client: sample with these parameters from the next frame on."""

    type: Literal["update"] = "update"
    sampling: SamplingParams


class AskStats(_Message):
    """From a client: request ``Stats``."""

    type: Literal["stats"] = "stats"


class Close(_Message):
    """From a client: end the session."""

    type: Literal["close"] = "close"


class Stats(_FromServer):
    """From the server: counters of the session, as ``SessionStats``."""

    type: Literal["stats"] = "stats"
    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int


class SpeechState(_FromServer):
    """From the server: how far a speech has got. ``said`` and ``cut`` are final.

    Attributes:
        id: As in ``Say``.
        state: As ``Speech.state``.
        spoken: Words that have been heard.
    """

    type: Literal["speech"] = "speech"
    id: _Id
    state: Literal["waiting", "speaking", "said", "cut"]
    spoken: _Count


class Prompted(_FromServer):
    """From the server: the result of ``UpdatePrompt``.

    Attributes:
        id: As in ``UpdatePrompt``.
        ok: Whether the new prompt is in effect; if not, the old one is, and the other fields say
            why, as in ``Error``.
    """

    type: Literal["prompted"] = "prompted"
    id: _Id = 0
    ok: bool
    code: str = ""
    message: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Draining(_FromServer):
    """From the server: it is stopping and ends the session after at most this many seconds."""

    type: Literal["draining"] = "draining"
    seconds: float


class Closed(_FromServer):
    """From the server: the session ended because the client requested it."""

    type: Literal["closed"] = "closed"


class Error(_FromServer):
    """From the server: an error; after a fatal one the server closes."""

    type: Literal["error"] = "error"
    code: str
    message: str
    fatal: bool
    details: dict[str, Any] = Field(default_factory=dict)


Instruction = Say | Hush | Hold | Release | UpdatePrompt | Update
"""What changes a running session. Server and client count instructions to resume exactly."""
ClientMessage = Open | Resume | Instruction | AskStats | Close
ServerMessage = (
    Hello | Opened | Ready | Resumed | SpeechState | Prompted | Stats | Draining | Closed | Error
)

_M = TypeVar("_M", ClientMessage, ServerMessage)
# By default, pydantic's cache keeps short strings of messages, such as the secrets of sessions.
_PARSING = ConfigDict(cache_strings="keys")
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")], config=_PARSING
)
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(
    Annotated[ServerMessage, Field(discriminator="type")], config=_PARSING
)


def parse_client(text: str) -> ClientMessage:
    """Parse a client's message.

    Raises:
        BadMessage: Not a valid client message.
        ConfigError: A sampling parameter is not valid.
    """
    return _parse(_CLIENT, text)


def parse_server(text: str) -> ServerMessage:
    """Parse a server's message.

    Raises:
        BadMessage: Not a valid server message.
    """
    return _parse(_SERVER, text)


def _parse(adapter: TypeAdapter[_M], text: str) -> _M:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadMessage(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _code(class_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name).lower()


_BY_CODE: Mapping[str, type[PersonaPlexError]] = {
    _code(name): getattr(errors, name) for name in errors.__all__
}


class _EngineFullDetails(_FromServer):
    max_sessions: _Count


class _TooLongDetails(_FromServer):
    frames: _Count
    limit: _Count


class _VoiceNotFoundDetails(_FromServer):
    name: str
    known: list[str]


# The constructor arguments of errors that have fields.
_DETAILS: Mapping[type[PersonaPlexError], type[_FromServer]] = {
    errors.EngineFull: _EngineFullDetails,
    errors.PromptTooLong: _TooLongDetails,
    errors.SpeechTooLong: _TooLongDetails,
    errors.VoiceNotFound: _VoiceNotFoundDetails,
}


def error_message(error: PersonaPlexError, *, fatal: bool) -> Error:
    """Convert an error to a message; its code is the class name, ``engine_full`` for EngineFull."""
    # vars(error) holds exactly the constructor arguments of errors with fields, see _DETAILS.
    return Error(
        code=_code(type(error).__name__), message=str(error), fatal=fatal, details=vars(error)
    )


def prompted_message(id: int, error: PersonaPlexError | None) -> Prompted:
    """The report of a prompt update that succeeded, or that failed with this error."""
    if error is None:
        return Prompted(id=id, ok=True)
    message = error_message(error, fatal=False)
    return Prompted(
        id=id, ok=False, code=message.code, message=message.message, details=message.details
    )


def rebuild_error(message: Error | Prompted) -> PersonaPlexError:
    """Convert a server's message back to an error; ``SessionFailed`` if its code is unknown."""
    kind = _BY_CODE.get(message.code, SessionFailed)
    if kind not in _DETAILS:
        return kind(message.message)
    try:
        return kind(**_DETAILS[kind].model_validate(message.details).model_dump())
    except ValidationError:  # another version's error of the same name has other fields
        return SessionFailed(message.message)
