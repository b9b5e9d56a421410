from __future__ import annotations

import struct
import sys

import numpy as np
import opuslib_next
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_personaplex.errors import BadMessage, ConfigError, InvalidAudio
from pipecat_personaplex.protocol.moshi import Kind, OggOpusReader, OggOpusWriter, pack, unpack


def page(packets: list[bytes], number: int, *, first: bool = False) -> bytes:
    """An Ogg page. Its checksum is left out: the reader does not look at it."""
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    header = b"OggS\0" + bytes([2 if first else 0]) + struct.pack("<qIII", 0, 42, number, 0)
    return header + bytes([len(lacing)]) + lacing + b"".join(packets)


HEADERS = page(
    [b"OpusHead\x01\x01" + struct.pack("<HIhB", 312, 48_000, 0, 0)], 0, first=True
) + page([b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)], 1)


def packets(milliseconds: float, count: int) -> list[bytes]:
    size = int(milliseconds * 24)
    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_VOIP)
    return [encoder.encode(bytes(2 * size), size) for _ in range(count)]


def speech(frames: int) -> bytes:
    rng, writer = np.random.default_rng(0), OggOpusWriter()
    sound = 0.1 * rng.standard_normal((frames, 1920))
    return b"".join(writer.encode(frame.astype(np.float32)) for frame in sound)


def test_a_message_is_a_kind_and_a_payload() -> None:
    assert pack(Kind.HANDSHAKE) == b"\0"
    assert pack(Kind.TEXT, b" hello") == b"\x02 hello"
    assert unpack(b"\x06") == (Kind.PING, b"")
    assert unpack(b"\x01OggS") == (Kind.AUDIO, b"OggS")


@pytest.mark.parametrize("message", [b"", b"\x07", b"\xff", b"{}"])
def test_unknown_kinds_are_refused(message: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack(message)


def test_headers_come_with_the_first_frame() -> None:
    first, second = OggOpusWriter(), np.zeros(1920, dtype=np.float32)
    stream = first.encode(second)
    assert stream.startswith(b"OggS")
    assert b"OpusHead" in stream
    assert b"OpusTags" in stream


@given(st.lists(st.integers(1, 3_000), max_size=20))
@settings(deadline=None, max_examples=30)
def test_the_stream_may_be_split_anywhere(cuts: list[int]) -> None:
    stream, whole, pieces = speech(10), OggOpusReader(), OggOpusReader()
    expected = whole.decode(stream)
    assert len(expected) == 10 * 1920
    received, start = [], 0
    for size in (*cuts, len(stream)):
        received.append(pieces.decode(stream[start : start + size]))
        start += size
    np.testing.assert_array_equal(np.concatenate(received), expected)


@pytest.mark.parametrize("milliseconds", [2.5, 5, 10, 20, 40, 60, 80, 120])
def test_every_opus_frame_size_decodes(milliseconds: float) -> None:
    stream = HEADERS + page(packets(milliseconds, 7), 2)
    assert len(OggOpusReader().decode(stream)) == 7 * milliseconds * 24


def test_no_bytes_decode_to_no_samples() -> None:
    assert OggOpusReader().decode(b"").shape == (0,)


@pytest.mark.parametrize(
    "stream",
    [
        b"RIFF and so on, as a WAV file begins",
        b"OggS" + bytes(100) + b"OggX" * 30,
        HEADERS + page([b"\xff\xff\xff"], 2),
        HEADERS + page([b"", b""], 2),
    ],
)
def test_streams_that_are_not_ogg_opus_are_refused(stream: bytes) -> None:
    with pytest.raises(InvalidAudio):
        OggOpusReader().decode(stream)


def test_the_audio_of_a_small_message_is_bounded() -> None:
    silence = page(packets(20, 25), 2)
    assert len(silence) < 1_000
    reader = OggOpusReader()
    with pytest.raises(InvalidAudio, match="30 s"):
        reader.decode(HEADERS + silence * 100)


def test_the_buffer_of_an_endless_packet_is_bounded() -> None:
    reader = OggOpusReader()
    reader.decode(HEADERS)
    header = b"OggS\0\x01" + struct.pack("<qIII", -1, 42, 2, 0) + b"\xff" + b"\xff" * 255
    endless = header + bytes(255 * 255)
    with pytest.raises(InvalidAudio, match="hold no audio"):
        for _ in range(10):
            reader.decode(endless)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_a_damaged_stream_decodes_or_is_refused(data: st.DataObject) -> None:
    stream = bytearray(speech(3))
    for at in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=8)):
        stream[at] = data.draw(st.integers(0, 255))
    try:
        pcm = OggOpusReader().decode(bytes(stream[: data.draw(st.integers(0, len(stream)))]))
    except InvalidAudio:
        return
    assert pcm.dtype == np.float32
    assert len(pcm) <= 30 * 24_000


def test_a_panic_of_the_decoder_becomes_invalid_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    class Panics:
        def append_bytes(self, stream: bytes) -> None:
            raise PanicException("index out of bounds")

    reader = OggOpusReader()
    monkeypatch.setattr(reader, "_reader", Panics())
    with pytest.raises(InvalidAudio, match="index out of bounds"):
        reader.decode(b"OggS")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sphn", None)
    with pytest.raises(ConfigError, match="sphn"):
        OggOpusReader()
