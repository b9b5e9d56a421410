from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex.errors import BadMessage
from pipecat_personaplex.interface import FrameTimings, SessionFrame
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame

AGENT = np.array([948, 243, 1178, 546, 1736, 1030, 1978, 2008], dtype=np.int64)
USER = np.array([430, 1268, 381, 1611, 1095, 1495, 56, 472], dtype=np.int64)


def server_frame(text: str = " hello", audio: bytes = b"sound") -> ServerFrame:
    frame = SessionFrame(
        index=131,
        pcm=np.zeros(1920, dtype=np.float32),
        text=text,
        text_token=-1,
        agent_codes=AGENT,
        user_codes=USER,
        timings=FrameTimings(queued_ms=0.5, step_ms=42.25),
    )
    return ServerFrame.of(frame, audio)


def test_a_clients_frame_has_five_bytes_of_header() -> None:
    assert ClientFrame(0x01020304, b"sound").pack() == b"\x01\x01\x02\x03\x04sound"
    assert ClientFrame.unpack(b"\x01\xff\xff\xff\xff") == ClientFrame(0xFFFFFFFF, b"")


def test_a_servers_frame_has_the_documented_layout() -> None:
    assert server_frame().pack() == (
        b"\x01"
        + (131).to_bytes(4, "big")
        + (-1).to_bytes(4, "big", signed=True)
        + b"".join(int(code).to_bytes(2, "big") for code in (*AGENT, *USER))
        + struct.pack(">ff", 0.5, 42.25)
        + b"\x06 hello"
        + b"sound"
    )


@pytest.mark.parametrize("text", ["", " hello", " naïve \N{CAT FACE}"])
def test_a_servers_frame_round_trips(text: str) -> None:
    sent = server_frame(text)
    got = ServerFrame.unpack(sent.pack())
    np.testing.assert_array_equal(got.agent_codes, AGENT)
    np.testing.assert_array_equal(got.user_codes, USER)
    assert (got.sequence, got.text, got.text_token) == (131, text, -1)
    assert (got.timings, got.audio) == (sent.timings, b"sound")


def test_long_text_is_truncated_before_the_audio() -> None:
    got = ServerFrame.unpack(server_frame("x" * 300).pack())
    assert (got.text, got.audio) == ("x" * 255, b"sound")


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x01\0\0\0", b"\x02\0\0\0\0sound"])
def test_messages_that_are_not_frames_are_refused(message: bytes) -> None:
    with pytest.raises(BadMessage):
        ClientFrame.unpack(message)
    with pytest.raises(BadMessage):
        ServerFrame.unpack(message)


@pytest.mark.parametrize("queued, step", [(math.nan, 1.0), (1.0, math.inf)])
def test_infinite_timings_are_refused(queued: float, step: float) -> None:
    message = bytearray(server_frame().pack())
    message[41:49] = struct.pack(">ff", queued, step)
    with pytest.raises(BadMessage, match="finite"):
        ServerFrame.unpack(bytes(message))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_refused(message: bytes) -> None:
    try:
        frame = ClientFrame.unpack(message)
    except BadMessage:
        assert len(message) < 5 or message[0] != 1
    else:
        assert frame.pack() == message
