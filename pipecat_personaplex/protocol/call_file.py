"""A call as a file: the persona, and the history that ``open`` of ``/v1/session`` would send.

Layout: one line of JSON, then the messages of ``call_history``, each after its length in bytes as
an unsigned 32-bit big-endian integer. The line has the fields ``format``, ``version``, ``model``
(for readers; not checked), ``voice``, ``text_prompt``, ``history`` and ``history_audio`` (frames of
tokens and of audio that follow). A file has at most ``MAX_CALL_FILE_BYTES``.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SAMPLES, MAX_HISTORY_FRAMES, STREAMS
from pipecat_personaplex.errors import BadMessage, UserError
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.call_history import HistoryReader, bounded_history, pack_history
from pipecat_personaplex.protocol.session_messages import (
    MAX_HISTORY_AUDIO_FRAMES,
    MAX_MESSAGE_BYTES,
    Open,
)

MAX_CALL_FILE_BYTES = 1 << 20
"""More than the longest line and the longest history take together."""
_LENGTH = struct.Struct(">I")


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal["personaplex-call"] = "personaplex-call"
    version: Literal[1] = 1
    model: str
    voice: str
    text_prompt: str
    history: Annotated[int, Field(ge=0, le=MAX_HISTORY_FRAMES)]
    history_audio: Annotated[int, Field(ge=0, le=MAX_HISTORY_AUDIO_FRAMES)]


@dataclass(frozen=True)
class SavedCall:
    """A call that can be continued.

    Attributes:
        model: Name or folder of the model of the call.
        persona: Voice and role at the end of the call.
        history: Its newest frames, at most ``MAX_HISTORY_FRAMES``.

    Example::

        write_call(path, SavedCall("nano", session.persona, session.history()))
        call = read_call(path)
        engine.open_session(call.persona, on_frame=print, history=call.history)
    """

    model: str
    persona: Persona
    history: CallHistory


def write_call(path: Path, call: SavedCall) -> None:
    """Write a call to a file. Audio is stored in 16 bits.

    Raises:
        UserError: The text prompt is longer than a message of the protocol may be.
        OSError: The file cannot be written.
    """
    history = bounded_history(call.history)
    audio_frames = len(history.caller) // FRAME_SAMPLES if len(history.tokens) else 0
    header = _Header(
        # The name of a folder may hold bytes that are no characters.
        model=call.model.encode("utf-8", "backslashreplace").decode(),
        voice=call.persona.voice,
        text_prompt=call.persona.text_prompt,
        history=len(history.tokens),
        history_audio=audio_frames,
    )
    line = header.model_dump_json().encode() + b"\n"
    if len(line) > MAX_MESSAGE_BYTES:
        raise UserError(
            f"the call cannot be saved: its voice and text prompt take {len(line)} bytes, more "
            f"than {MAX_MESSAGE_BYTES}"
        )
    with path.open("wb") as file:
        file.write(line)
        if header.history:
            for message in pack_history(history):
                file.write(_LENGTH.pack(len(message)) + message)


def read_call(path: Path) -> SavedCall:
    """Read a call that ``write_call`` has written.

    The tokens are checked against a model by ``open_session`` only.

    Raises:
        UserError: The file cannot be read, or is not a saved call of this version.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_CALL_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error.strerror}") from None
    if len(content) > MAX_CALL_FILE_BYTES:
        raise _not_a_call(path, f"it has more than {MAX_CALL_FILE_BYTES} bytes")
    line, newline, rest = content.partition(b"\n")
    if not newline or len(line) >= MAX_MESSAGE_BYTES:
        raise _not_a_call(path, "it does not start with a line of JSON")
    try:
        header = _Header.model_validate_json(line)
    except ValidationError as error:
        raise _not_a_call(path, _first_problem(error)) from None
    try:
        history = _read_history(header, rest)
    except BadMessage as error:
        raise _not_a_call(path, str(error)) from None
    return SavedCall(header.model, Persona(header.voice, header.text_prompt), history)


def _read_history(header: _Header, content: bytes) -> CallHistory:
    """Decode the messages behind the line; raises ``BadMessage``."""
    reader = HistoryReader(
        Open(
            voice=header.voice,
            history=header.history or None,
            history_audio=header.history_audio,
        )
    )
    stream = io.BytesIO(content)
    while not reader.complete:
        prefix = stream.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise BadMessage("its end is missing")
        (length,) = _LENGTH.unpack(prefix)
        message = stream.read(min(length, MAX_MESSAGE_BYTES))
        if len(message) < length:
            raise BadMessage("its end is missing")
        reader.accept(message)
    if stream.read(1):
        raise BadMessage("it goes on behind the call")
    empty = CallHistory(np.empty((0, STREAMS), np.int16), np.empty(0, np.float32))
    return reader.history or empty


def _not_a_call(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a saved call of version 1: {reason}; save the call again with "
        "personaplex offline --save-call"
    )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, problem["loc"]))
    return f"{field or 'its first line'}: {problem['msg'].splitlines()[0]}"
