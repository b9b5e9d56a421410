"""The messages of ``/api/chat``, the protocol of Moshi and of NVIDIA's server.

Every message is binary: one byte for the kind, then the payload. Audio is one continuous Ogg-Opus
stream in each direction, mono, 24 kHz; a message may end anywhere in a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import BadMessage, ConfigError, InvalidAudio

MOSHI_PATH = "/api/chat"

# sphn's reader accepts at most five seconds of audio a call. At the usual bit rate of speech, a
# slice holds a quarter of a second.
_SLICE_BYTES = 1_024
# Silence compresses to 300 bytes for five seconds: without a limit, one message of 64 KiB could
# cost minutes of audio to decode.
_MAX_MESSAGE_SAMPLES = 30 * SAMPLE_RATE
# The reader buffers every byte until it completes audio; this bounds the buffer.
_MAX_SILENT_BYTES = 256 << 10


class Kind(IntEnum):
    """The kind of a message: its first byte."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


def pack(kind: Kind, payload: bytes = b"") -> bytes:
    """Build a message."""
    return bytes((kind,)) + payload


def unpack(message: bytes) -> tuple[Kind, bytes]:
    """Split a message into kind and payload.

    Raises:
        BadMessage: The message is empty, or its kind is unknown.
    """
    if not message:
        raise BadMessage("a message needs at least one byte, its kind")
    try:
        return Kind(message[0]), message[1:]
    except ValueError:
        raise BadMessage(
            f"the kind of a message must be from 0 to {max(Kind)}, not {message[0]}"
        ) from None


class OggOpusWriter:
    """Encodes audio as an Ogg-Opus stream; the first frame also yields the stream's headers.

    Raises:
        ConfigError: ``sphn`` is not installed.
    """

    def __init__(self) -> None:
        self._writer = _sphn().OpusStreamWriter(SAMPLE_RATE)

    def encode(self, pcm: Pcm) -> bytes:
        """Encode audio and return the next complete pages of the stream.

        Args:
            pcm: float32 [n], mono, 24 kHz; n must be the length of an Opus frame, such as 480 or
                1,920 samples.
        """
        pages: bytes = self._writer.append_pcm(pcm)
        return pages


class OggOpusReader:
    """Decodes an Ogg-Opus stream.

    Raises:
        ConfigError: ``sphn`` is not installed.
    """

    def __init__(self) -> None:
        self._reader = _sphn().OpusStreamReader(SAMPLE_RATE)
        self._silent_bytes = 0

    def decode(self, stream: bytes) -> Pcm:
        """Decode the stream's next bytes.

        Args:
            stream: Any number of bytes, which may end anywhere in a page.

        Returns:
            The audio that these bytes complete: float32 [n], n >= 0, mono, 24 kHz.

        Raises:
            InvalidAudio: The bytes are not Ogg-Opus, or hold too much audio. The reader cannot be
                used afterwards.
        """
        decoded = list(self.decode_slices(stream))
        return np.concatenate(decoded) if decoded else np.zeros(0, dtype=np.float32)

    def decode_slices(self, stream: bytes) -> Iterator[Pcm]:
        """Decode the stream's next bytes as ``decode``, in pieces that each take little time."""
        samples = 0
        for start in range(0, len(stream), _SLICE_BYTES):
            pcm = self._decode_slice(stream[start : start + _SLICE_BYTES])
            samples += len(pcm)
            if samples > _MAX_MESSAGE_SAMPLES:
                raise InvalidAudio(
                    f"a message may hold at most {_MAX_MESSAGE_SAMPLES // SAMPLE_RATE} s of audio; "
                    "send audio in real time"
                )
            if len(pcm):
                yield pcm

    def _decode_slice(self, stream: bytes) -> Pcm:
        try:
            pcm: Pcm = self._reader.append_bytes(stream)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in sphn's Rust code is not an Exception
            raise InvalidAudio(f"the Ogg-Opus stream does not decode: {error}") from None
        self._silent_bytes = 0 if len(pcm) else self._silent_bytes + len(stream)
        if self._silent_bytes > _MAX_SILENT_BYTES:
            raise InvalidAudio(
                f"{_MAX_SILENT_BYTES >> 10} KiB of the Ogg-Opus stream hold no audio"
            )
        return pcm


def _sphn() -> Any:
    try:
        import sphn
    except ImportError:
        raise ConfigError(
            "Ogg-Opus needs the Python package sphn: pip install 'pipecat-personaplex[server]'"
        ) from None
    return sphn
