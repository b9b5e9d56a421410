"""Encode and decode the audio of frames (80 ms) for the connection: PCM or Opus."""

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
    """Encoder of one direction and decoder of the other, for one session."""

    def encode(self, pcm: Pcm) -> bytes:
        """Encode a frame.

        Args:
            pcm: float32 [1920], mono, 24 kHz.
        """

    def decode(self, audio: bytes) -> Pcm:
        """Decode a frame.

        Returns:
            float32 [1920], mono, 24 kHz.

        Raises:
            InvalidAudio: The bytes are not one frame.
        """


def open_codec(audio_format: AudioFormat) -> FrameCodec:
    """Create the codec of a new session.

    Raises:
        ConfigError: A package or a library for Opus is missing.
    """
    return Pcm16Codec() if audio_format == "pcm16" else OpusCodec()


class Pcm16Codec:
    """16-bit little-endian samples, without state."""

    def encode(self, pcm: Pcm) -> bytes:
        """Encode float32 [1920] as 3,840 bytes."""
        return float_to_pcm16(pcm).astype(_PCM16, copy=False).tobytes()

    def decode(self, audio: bytes) -> Pcm:
        """Decode 3,840 bytes to float32 [1920]."""
        if len(audio) != _PCM16_BYTES:
            raise InvalidAudio(
                f"a frame must have {_PCM16_BYTES} bytes of 16-bit PCM ({FRAME_SAMPLES} samples, "
                f"mono, {SAMPLE_RATE} Hz), not {len(audio)}"
            )
        return pcm16_to_float(np.frombuffer(audio, _PCM16))


class OpusCodec:
    """Raw Opus packets, one a frame.

    Encoder and decoder have state: every packet must be decoded, in order.
    """

    def __init__(self) -> None:
        opuslib = _opuslib()
        self._failure = opuslib.OpusError
        self._encoder = opuslib.Encoder(SAMPLE_RATE, 1, opuslib.APPLICATION_AUDIO)
        self._decoder = opuslib.Decoder(SAMPLE_RATE, 1)

    def encode(self, pcm: Pcm) -> bytes:
        """Encode float32 [1920] as one packet."""
        packet: bytes = self._encoder.encode(float_to_pcm16(pcm).tobytes(), FRAME_SAMPLES)
        return packet

    def decode(self, audio: bytes) -> Pcm:
        """Decode one packet to float32 [1920]."""
        try:
            # The decoder takes empty input for a lost packet and conceals it with invented audio.
            pcm = self._decoder.decode(audio, FRAME_SAMPLES) if audio else b""
        except self._failure as error:
            raise InvalidAudio(f"the Opus packet does not decode: {error}") from None
        samples = np.frombuffer(pcm, np.int16)
        if samples.size != FRAME_SAMPLES:
            raise InvalidAudio(
                f"a frame must be an Opus packet of 80 ms ({FRAME_SAMPLES} samples), not of "
                f"{samples.size} samples"
            )
        return pcm16_to_float(samples)


def _opuslib() -> Any:
    try:
        import opuslib_next
    except ImportError:
        raise ConfigError(
            "Opus needs the Python package opuslib_next: pip install 'pipecat-personaplex[server]'"
        ) from None
    except Exception:
        # opuslib_next searches for libopus on import and raises a plain Exception.
        raise ConfigError(
            "Opus needs libopus, which is not installed: apt install libopus0 (Debian), "
            "brew install opus (macOS); or use pcm16"
        ) from None
    return opuslib_next
