"""The history of a call as messages; the server's tests have the refused ones."""

from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex.constants import FRAME_SAMPLES, STREAMS
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.call_history import (
    HistoryReader,
    bounded_history,
    pack_history,
)
from pipecat_personaplex.protocol.session_messages import MAX_MESSAGE_BYTES, Open


def history(frames: int, audio_frames: int) -> CallHistory:
    random = np.random.default_rng(frames)
    tokens = random.integers(0, 32_000, (frames, STREAMS)).astype(np.int16)
    caller = random.integers(-32_768, 32_768, audio_frames * FRAME_SAMPLES)
    return CallHistory(tokens, (caller / 32_768).astype(np.float32))


@pytest.mark.parametrize(("frames", "audio_frames"), [(1, 0), (1_800, 16), (3_000, 32)])
def test_messages_hold_the_whole_history(frames: int, audio_frames: int) -> None:
    sent = history(frames, audio_frames)
    reader = HistoryReader(Open(voice="NATF2", history=frames, history_audio=audio_frames))
    for message in pack_history(sent):
        assert len(message) <= MAX_MESSAGE_BYTES and not reader.complete
        reader.accept(message)
    assert reader.complete and reader.history is not None
    np.testing.assert_array_equal(reader.history.tokens, sent.tokens)
    np.testing.assert_array_equal(reader.history.caller, sent.caller)


def test_the_documented_layout() -> None:
    tokens = np.arange(STREAMS, dtype=np.int16).reshape(1, STREAMS)
    caller = np.full(FRAME_SAMPLES, 1 / 32_768, np.float32)
    packed = list(pack_history(CallHistory(tokens, caller)))
    assert packed[0] == b"\x02" + b"".join(bytes((0, token)) for token in range(STREAMS))
    assert packed[1] == b"\x03" + b"\x01\x00" * FRAME_SAMPLES


def test_a_new_call_has_no_messages() -> None:
    reader = HistoryReader(Open(voice="NATF2"))
    assert reader.complete and reader.history is None


def test_the_newest_part_of_a_long_history() -> None:
    long = history(3_100, 40)
    short = bounded_history(long)
    np.testing.assert_array_equal(short.tokens, long.tokens[100:])
    np.testing.assert_array_equal(short.caller, long.caller[8 * FRAME_SAMPLES :])
