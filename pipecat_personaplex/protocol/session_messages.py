"""The JSON messages of ``/v1/session``, and errors as messages."""

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
"""What a browser, which cannot send headers, puts before its key."""
MAX_MESSAGE_BYTES = 64 << 10

# Past what any server has, and small enough for every sum.
_MAX_COUNT = 10**6

_Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]

AudioFormat = Literal["pcm16", "opus"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _FromServer(_Message):
    # A later server may say more than this client knows of.
    model_config = ConfigDict(extra="ignore")


class Hello(_FromServer):
    """Server: who it is and how much room it has."""

    type: Literal["hello"] = "hello"
    version: int = VERSION
    model: str
    voices: list[str]
    sessions: _Count
    max_sessions: _Count
    draining: bool


class Open(_Message):
    """Client: a new session."""

    type: Literal["open"] = "open"
    voice: str
    text_prompt: str = ""
    sampling: SamplingParams = Field(default_factory=SamplingParams)
    audio: AudioFormat = "pcm16"


class Opened(_FromServer):
    """Server: the session has a slot."""

    type: Literal["opened"] = "opened"
    session: str
    resume_seconds: float
    id: str = ""


class Ready(_FromServer):
    """Server: the prompt is in; frames are answered."""

    type: Literal["ready"] = "ready"


class Resume(_Message):
    """Client: a session whose connection broke goes on here."""

    type: Literal["resume"] = "resume"
    session: str
    next_frame: int = Field(ge=0)


class Resumed(_FromServer):
    """Server: it does; and the frame it wants next."""

    type: Literal["resumed"] = "resumed"
    next_frame: int = Field(ge=0)
    ready: bool


class Say(_Message):
    """Client: words that the agent says next."""

    type: Literal["say"] = "say"
    text: str


class Update(_Message):
    """Client: draw tokens in this way from the next frame on."""

    type: Literal["update"] = "update"
    sampling: SamplingParams


class AskStats(_Message):
    """Client: how is the session doing?"""

    type: Literal["stats"] = "stats"


class Close(_Message):
    """Client: the session ends."""

    type: Literal["close"] = "close"


class Stats(_FromServer):
    """Server: counters of the session."""

    type: Literal["stats"] = "stats"
    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int


class Draining(_FromServer):
    """Server: it will stop, and end the session by then."""

    type: Literal["draining"] = "draining"
    seconds: float


class Closed(_FromServer):
    """Server: the session ended as asked."""

    type: Literal["closed"] = "closed"


class Error(_FromServer):
    """Server: something is wrong; after a fatal one it closes."""

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
    """A client's message.

    Raises:
        BadMessage: It is not one of those there are.
        ConfigError: A sampling parameter cannot be.
    """
    return _parse(_CLIENT, text)


def parse_server(text: str) -> ServerMessage:
    """A server's message.

    Raises:
        BadMessage: It is not one of those there are.
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


class _Full(_FromServer):
    max_sessions: _Count


class _TooLong(_FromServer):
    frames: _Count
    limit: _Count


class _NotFound(_FromServer):
    name: str
    known: list[str]


# What errors of several parts are made from.
_PARTS: Mapping[type[PersonaPlexError], type[_FromServer]] = {
    errors.EngineFull: _Full,
    errors.PromptTooLong: _TooLong,
    errors.SpeechTooLong: _TooLong,
    errors.VoiceNotFound: _NotFound,
}


def error_message(error: PersonaPlexError, *, fatal: bool) -> Error:
    """An error as a message: the code is its class's name, ``engine_full`` for ``EngineFull``."""
    # An error class of several parts keeps what it was made from, and nothing else.
    return Error(
        code=_code(type(error).__name__), message=str(error), fatal=fatal, details=vars(error)
    )


def rebuild_error(message: Error) -> PersonaPlexError:
    """The error that a server told of; ``SessionFailed`` for one that is not known here."""
    kind = _BY_CODE.get(message.code, SessionFailed)
    if kind not in _PARTS:
        return kind(message.message)
    try:
        return kind(**_PARTS[kind].model_validate(message.details).model_dump())
    except ValidationError:  # other parts than ours: another version's
        return SessionFailed(message.message)
