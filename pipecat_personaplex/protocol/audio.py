"""Frames of 80 ms as bytes: PCM, or Opus packets."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pipecat_personaplex.audio import Pcm, float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, InvalidAudio
from pipecat_personaplex.protocol.session_messages import AudioFormat

_PCM16 = np.dtype("<i2")
_PCM16_BYTES = FRAME_SAMPLES * _PCM16.itemsize


class FrameCodec(Protocol):
    """One direction's encoder and the other's decoder, for one session."""

    def encode(self, pcm: Pcm) -> bytes:
        """A frame as bytes.

        Args:
            pcm: float32 [1920], 24 kHz.
        """

    def decode(self, audio: bytes) -> Pcm:
        """Bytes as a frame, float32 [1920].

        Raises:
            InvalidAudio: They are not a frame.
        """


def open_codec(audio_format: AudioFormat) -> FrameCodec:
    """A codec for a new session.

    Raises:
        ConfigError: Opus cannot be had on this machine.
    """
    return Pcm16() if audio_format == "pcm16" else Opus()


class Pcm16:
    """16-bit little-endian samples."""

    def encode(self, pcm: Pcm) -> bytes:
        """A frame as 3,840 bytes."""
        return float_to_pcm16(pcm).astype(_PCM16, copy=False).tobytes()

    def decode(self, audio: bytes) -> Pcm:
        """3,840 bytes as a frame."""
        if len(audio) != _PCM16_BYTES:
            raise InvalidAudio(
                f"a frame is {_PCM16_BYTES} bytes of 16-bit PCM ({FRAME_SAMPLES} samples, mono, "
                f"{SAMPLE_RATE} Hz), not {len(audio)}"
            )
        return pcm16_to_float(np.frombuffer(audio, _PCM16))


class Opus:
    """Raw Opus packets. Each direction has a state: packets must come in order, and all of them."""

    def __init__(self) -> None:
        opuslib = _opuslib()
        self._failure = opuslib.OpusError
        self._encoder = opuslib.Encoder(SAMPLE_RATE, 1, opuslib.APPLICATION_AUDIO)
        self._decoder = opuslib.Decoder(SAMPLE_RATE, 1)

    def encode(self, pcm: Pcm) -> bytes:
        """A frame as a packet."""
        packet: bytes = self._encoder.encode(float_to_pcm16(pcm).tobytes(), FRAME_SAMPLES)
        return packet

    def decode(self, audio: bytes) -> Pcm:
        """A packet as a frame."""
        try:
            # With no bytes at all the decoder would invent a frame for one that was lost.
            pcm = self._decoder.decode(audio, FRAME_SAMPLES) if audio else b""
        except self._failure as error:
            raise InvalidAudio(f"the Opus packet does not decode: {error}") from None
        samples = np.frombuffer(pcm, np.int16)
        if samples.size != FRAME_SAMPLES:
            raise InvalidAudio(
                f"a frame is an Opus packet of 80 ms ({FRAME_SAMPLES} samples), not of "
                f"{samples.size} samples"
            )
        return pcm16_to_float(samples)


def _opuslib() -> Any:
    try:
        import opuslib_next
    except ImportError:
        raise ConfigError(
            "Opus needs the Python package opuslib_next: pip install -e '.[server]' in the checkout"
        ) from None
    except Exception:
        # It looks for the library when it is imported, and raises a plain Exception.
        raise ConfigError(
            "Opus needs libopus, which is not on this machine: apt install libopus0 (Debian), "
            "brew install opus (macOS); or use pcm16"
        ) from None
    return opuslib_next
