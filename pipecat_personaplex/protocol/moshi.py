"""The messages of ``/api/chat``, which NVIDIA's server and its clients speak.

Binary WebSocket messages: one byte that says the kind, then the payload. Audio is one continuous
Ogg-Opus stream each way, 24 kHz mono, cut into messages anywhere.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import BadMessage, ConfigError, InvalidAudio

MOSHI_PATH = "/api/chat"

# The decoder takes at most five seconds of sound at once: a slice holds a quarter of one, as
# speech is usually coded.
_SLICE_BYTES = 1_024
# A page of 300 bytes may stand for five seconds; this bounds what a message costs to decode.
_MAX_MESSAGE_SAMPLES = 30 * SAMPLE_RATE
# What a stream may hold before its first sound, or between two: the decoder keeps it all.
_MAX_SILENT_BYTES = 256 << 10


class Kind(IntEnum):
    """What a message is; its first byte."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


def pack(kind: Kind, payload: bytes = b"") -> bytes:
    """A message."""
    return bytes((kind,)) + payload


def unpack(message: bytes) -> tuple[Kind, bytes]:
    """A message's kind and payload.

    Raises:
        BadMessage: It is empty, or of a kind that there is not.
    """
    if not message:
        raise BadMessage("a message has at least one byte, which says its kind")
    try:
        return Kind(message[0]), message[1:]
    except ValueError:
        raise BadMessage(f"message kinds go from 0 to {max(Kind)}, not {message[0]}") from None


class OggOpusWriter:
    """Sound as an Ogg-Opus stream; its headers come with the first frame.

    Raises:
        ConfigError: ``sphn`` is not installed.
    """

    def __init__(self) -> None:
        self._writer = _sphn().OpusStreamWriter(SAMPLE_RATE)

    def encode(self, pcm: Pcm) -> bytes:
        """The stream's next bytes, whole pages.

        Args:
            pcm: float32, as long as an Opus frame may be: 1,920 samples or 480, for example.
        """
        pages: bytes = self._writer.append_pcm(pcm)
        return pages


class OggOpusReader:
    """An Ogg-Opus stream as sound.

    Raises:
        ConfigError: ``sphn`` is not installed.
    """

    def __init__(self) -> None:
        self._reader = _sphn().OpusStreamReader(SAMPLE_RATE)
        self._silent_bytes = 0

    def decode(self, stream: bytes) -> Pcm:
        """The sound that the stream's next bytes complete, float32 of any length.

        Args:
            stream: Any number of bytes; pages may be cut anywhere.

        Raises:
            InvalidAudio: They are not Ogg-Opus, or too much of it. The reader is of no use then.
        """
        sound: list[Pcm] = []
        samples = 0
        for start in range(0, len(stream), _SLICE_BYTES):
            sound.append(self._decode_slice(stream[start : start + _SLICE_BYTES]))
            samples += len(sound[-1])
            if samples > _MAX_MESSAGE_SAMPLES:
                raise InvalidAudio(
                    f"a message may hold {_MAX_MESSAGE_SAMPLES // SAMPLE_RATE} s of sound; "
                    "send it as it is spoken"
                )
        return np.concatenate(sound) if sound else np.zeros(0, dtype=np.float32)

    def _decode_slice(self, stream: bytes) -> Pcm:
        try:
            pcm: Pcm = self._reader.append_bytes(stream)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of its Rust code is no Exception
            raise InvalidAudio(f"the Ogg-Opus stream does not decode: {error}") from None
        self._silent_bytes = 0 if len(pcm) else self._silent_bytes + len(stream)
        if self._silent_bytes > _MAX_SILENT_BYTES:
            raise InvalidAudio(
                f"{_MAX_SILENT_BYTES >> 10} KiB of the Ogg-Opus stream hold no sound"
            )
        return pcm


def _sphn() -> Any:
    try:
        import sphn
    except ImportError:
        raise ConfigError(
            "Ogg-Opus needs the Python package sphn: pip install -e '.[server]' in the checkout"
        ) from None
    return sphn
