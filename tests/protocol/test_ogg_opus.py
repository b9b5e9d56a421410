"""The durations of Ogg-Opus streams, as sphn's encoder and others write them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.errors import InvalidAudio
from pipecat_personaplex.protocol.moshi import OggOpusReader
from pipecat_personaplex.protocol.ogg_opus import OggOpusMeter


def stream(seconds: float, *, loud: bool = False) -> bytes:
    """Encode silence or noise as an Ogg-Opus stream."""
    writer = sphn.OpusStreamWriter(SAMPLE_RATE)
    frames = round(seconds / 0.08)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (frames, FRAME_SAMPLES))
    pcm = (noise if loud else np.zeros_like(noise)).astype(np.float32)
    return b"".join(writer.append_pcm(frame) for frame in pcm)


def page(*packets: bytes, continued: bytes = b"") -> bytes:
    """A page of an Ogg stream; each packet ends in it."""
    segments = b""
    for packet in packets:
        segments += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    header = b"OggS" + bytes(22) + bytes([len(segments)])
    return header + segments + continued + b"".join(packets)


@pytest.mark.parametrize("loud", [False, True])
def test_the_duration_is_what_the_decoder_yields(loud: bool) -> None:
    data = stream(10, loud=loud)
    seconds = OggOpusMeter().feed(data)
    assert seconds == pytest.approx(10, abs=0.2)
    assert seconds >= len(OggOpusReader().decode(data)) / SAMPLE_RATE - 1e-9


def test_half_a_minute_of_silence_in_one_message_is_measured() -> None:
    data = stream(29)
    assert len(data) < 64 << 10  # fits into one message
    assert OggOpusMeter().feed(data) == pytest.approx(29, abs=0.2)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    data = stream(3)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    meter = OggOpusMeter()
    parts = [meter.feed(data[a:b]) for a, b in pairwise(bounds)]
    assert sum(parts) == pytest.approx(OggOpusMeter().feed(data))


@pytest.mark.parametrize(
    ("packet", "ms"),
    [
        (b"\x80", 2.5),  # CELT, one frame
        (b"\x81..", 5),  # two of the same size
        (b"\x82..", 5),  # two of different sizes
        (b"\x1b\x02" + bytes(9), 120),  # SILK, two frames of 60 ms
        (b"\xff\x3f", 120),  # 63 frames: more than a packet may have
        (b"\x83", 0),  # without its number of frames: not decodable
        (b"\x08" + bytes(600), 20),  # of several segments
    ],
)
def test_packets_of_every_kind(packet: bytes, ms: float) -> None:
    assert OggOpusMeter().feed(page(packet)) == pytest.approx(ms / 1e3)


def test_a_packet_that_continues_on_the_next_page_counts_once() -> None:
    first = b"OggS" + bytes(22) + b"\x01\xff" + b"\x08" + bytes(254)
    meter = OggOpusMeter()
    assert meter.feed(first) == pytest.approx(0.02)
    assert meter.feed(page(b"\x80", b"\x08")) == pytest.approx(0.02)


@pytest.mark.parametrize("data", [b"hello", b"OggX", b"\0", stream(1)[1:]])
def test_what_is_not_ogg_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidAudio, match="OggS"):
        OggOpusMeter().feed(data)


@pytest.mark.parametrize("packets", [(b"",), (b"\x08..", b"")])
def test_an_empty_packet_is_refused(packets: tuple[bytes, ...]) -> None:
    """It would be counted as nothing, and decoded to five seconds."""
    with pytest.raises(InvalidAudio, match="must not be empty"):
        OggOpusMeter().feed(page(*packets))


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_no_bytes_break_the_meter(data: bytes) -> None:
    meter = OggOpusMeter()
    try:
        assert 0 <= meter.feed(b"OggS" + data) < 40
        assert len(meter._page) < 70_000
    except InvalidAudio:
        pass
