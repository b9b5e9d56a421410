from __future__ import annotations

import sys

import numpy as np
import opuslib_next
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.errors import ConfigError, InvalidAudio
from pipecat_personaplex.protocol.audio import OpusCodec, Pcm16Codec, open_codec


def tone(frames: int) -> Pcm:
    time = np.arange(frames * 1920) / 24_000
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def test_pcm_is_little_endian_and_exact() -> None:
    codec = open_codec("pcm16")
    frame = np.zeros(1920, dtype=np.float32)
    frame[:3] = (1 / 32768, -1, 0.5)
    audio = codec.encode(frame)
    assert audio[:6] == b"\x01\x00\x00\x80\x00\x40"
    np.testing.assert_array_equal(codec.decode(audio), frame)


@pytest.mark.parametrize("size", [0, 1, 3838, 3839, 3841, 7680, 60_000])
def test_pcm_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidAudio, match="3840"):
        Pcm16Codec().decode(bytes(size))


def test_opus_preserves_the_sound() -> None:
    sender, receiver, sound = open_codec("opus"), open_codec("opus"), tone(25)
    frames = [receiver.decode(sender.encode(frame)) for frame in sound.reshape(-1, 1920)]
    received = np.concatenate(frames)
    delay = 156  # 6.5 ms: Opus looks ahead
    error = received[delay + 4_000 :] - sound[4_000:-delay]
    assert np.sqrt(np.mean(error**2)) < 0.02


@pytest.mark.parametrize("milliseconds", [2.5, 5, 10, 20, 40, 60, 100, 120])
def test_opus_packets_of_another_length_are_refused(milliseconds: float) -> None:
    size = int(milliseconds * 24)
    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_AUDIO)
    with pytest.raises(InvalidAudio):
        OpusCodec().decode(encoder.encode(bytes(2 * size), size))


def test_an_empty_opus_packet_is_refused() -> None:
    with pytest.raises(InvalidAudio):
        OpusCodec().decode(b"")


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_random_bytes_decode_or_are_refused(packet: bytes) -> None:
    try:
        pcm = OpusCodec().decode(packet)
    except InvalidAudio:
        return
    assert pcm.shape == (1920,)
    assert np.isfinite(pcm).all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opuslib_next", None)
    with pytest.raises(ConfigError, match="opuslib_next"):
        open_codec("opus")
