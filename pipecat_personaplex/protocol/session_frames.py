"""The binary messages of ``/v1/session``: one for each frame (80 ms) in each direction."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import BadMessage
from pipecat_personaplex.interface import Codes, FrameTimings, SessionFrame

_AUDIO = 1  # the first byte of every binary message
# Kind, sequence.
_CLIENT = struct.Struct(">BI")
# Kind, sequence, text token, agent codes, user codes, queued ms, step ms, length of the text.
_SERVER = struct.Struct(f">BIi{CODEBOOKS}h{CODEBOOKS}hffB")
_MAX_TEXT_BYTES = 255


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """An input frame: the caller's audio.

    Attributes:
        sequence: The frame's index in its session, from 0.
        audio: Encoded in the session's audio format.
    """

    sequence: int
    audio: bytes

    def pack(self) -> bytes:
        """Encode the frame as a message."""
        return _CLIENT.pack(_AUDIO, self.sequence) + self.audio

    @classmethod
    def unpack(cls, message: bytes) -> ClientFrame:
        """Decode a message.

        Raises:
            BadMessage: The message is not a frame.
        """
        _check(message, _CLIENT.size)
        return cls(_CLIENT.unpack_from(message)[1], message[_CLIENT.size :])


@dataclass(frozen=True, slots=True)
class ServerFrame:
    """An output frame: a ``SessionFrame`` whose audio is encoded.

    Attributes:
        sequence: The frame's index in its session, from 0.
        text: The text piece of the inner monologue, at most 255 bytes of UTF-8.
        text_token: The token id of that piece.
        agent_codes: The agent's audio codes, int64 [8].
        user_codes: The caller's audio codes, int64 [8].
        timings: Time in the engine's queue and in the step.
        audio: Encoded in the session's audio format.
    """

    sequence: int
    text: str
    text_token: int
    agent_codes: Codes
    user_codes: Codes
    timings: FrameTimings
    audio: bytes

    @classmethod
    def of(cls, frame: SessionFrame, audio: bytes) -> ServerFrame:
        """Create from an engine's frame and its encoded audio."""
        return cls(
            frame.index,
            frame.text,
            frame.text_token,
            frame.agent_codes,
            frame.user_codes,
            frame.timings,
            audio,
        )

    def pack(self) -> bytes:
        """Encode the frame as a message."""
        text = self.text.encode()[:_MAX_TEXT_BYTES]
        return b"".join(
            (
                _SERVER.pack(
                    _AUDIO,
                    self.sequence,
                    self.text_token,
                    *self.agent_codes.tolist(),
                    *self.user_codes.tolist(),
                    self.timings.queued_ms,
                    self.timings.step_ms,
                    len(text),
                ),
                text,
                self.audio,
            )
        )

    @classmethod
    def unpack(cls, message: bytes) -> ServerFrame:
        """Decode a message.

        Raises:
            BadMessage: The message is not a frame.
        """
        _check(message, _SERVER.size)
        _, sequence, token, *rest = _SERVER.unpack_from(message)
        codes = np.array(rest[: 2 * CODEBOOKS], dtype=np.int64)
        queued_ms, step_ms, text_bytes = rest[2 * CODEBOOKS :]
        if not (math.isfinite(queued_ms) and math.isfinite(step_ms)):
            raise BadMessage("a frame's timings must be finite")
        start = _SERVER.size + text_bytes
        text = message[_SERVER.size : start].decode(errors="replace")
        return cls(
            sequence,
            text,
            token,
            codes[:CODEBOOKS],
            codes[CODEBOOKS:],
            FrameTimings(queued_ms, step_ms),
            message[start:],
        )


def _check(message: bytes, header: int) -> None:
    if len(message) < header:
        raise BadMessage(
            f"a frame has a header of {header} bytes; the message has only {len(message)}"
        )
    if message[0] != _AUDIO:
        raise BadMessage(f"a binary message must begin with {_AUDIO} (audio), not {message[0]}")
