"""The JSON messages of ``/v1/session``, and the conversion of errors to messages and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipecat_personaplex import errors
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.errors import BadMessage, PersonaPlexError, SessionFailed

VERSION = 1
SESSION_PATH = "/v1/session"
SUBPROTOCOL = "personaplex.v1"
BEARER_SUBPROTOCOL = "bearer."
"""Prefix of the key in a browser's subprotocol: a browser cannot send an Authorization header."""
MAX_MESSAGE_BYTES = 64 << 10

# More than any server has, and small enough that sums stay exact.
_MAX_COUNT = 10**6

_Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]

# A public id is written to logs: it must not contain spaces or line breaks.
_PublicId = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{0,64}$")]

AudioFormat = Literal["pcm16", "opus"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _FromServer(_Message):
    # A later server may send fields that this client does not know.
    model_config = ConfigDict(extra="ignore")


class Hello(_FromServer):
    """From the server: its model, voices and slots; the first message of every connection."""

    type: Literal["hello"] = "hello"
    version: int = VERSION
    model: str
    voices: list[str]
    sessions: _Count
    max_sessions: _Count
    draining: bool


class Open(_Message):
    """From a client: open a session."""

    type: Literal["open"] = "open"
    voice: str
    text_prompt: str = ""
    sampling: SamplingParams = Field(default_factory=SamplingParams)
    audio: AudioFormat = "pcm16"


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
    """

    type: Literal["resumed"] = "resumed"
    next_frame: int = Field(ge=0)
    ready: bool


class Say(_Message):
    """From a client: words that the agent says next."""

    type: Literal["say"] = "say"
    text: str


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


ClientMessage = Open | Resume | Say | Update | AskStats | Close
ServerMessage = Hello | Opened | Ready | Resumed | Stats | Draining | Closed | Error

_M = TypeVar("_M", ClientMessage, ServerMessage)
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")]
)
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(
    Annotated[ServerMessage, Field(discriminator="type")]
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


def rebuild_error(message: Error) -> PersonaPlexError:
    """Convert a server's message back to an error; ``SessionFailed`` if its code is unknown."""
    kind = _BY_CODE.get(message.code, SessionFailed)
    if kind not in _DETAILS:
        return kind(message.message)
    try:
        return kind(**_DETAILS[kind].model_validate(message.details).model_dump())
    except ValidationError:  # another version's error of the same name has other fields
        return SessionFailed(message.message)
