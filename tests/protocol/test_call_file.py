"""Calls in files: what is written is read again; other files are refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SAMPLES, STREAMS
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.call_file import (
    MAX_CALL_FILE_BYTES,
    SavedCall,
    read_call,
    write_call,
)
from tests.protocol.test_call_history import history

ANNA = Persona("NATF2", "Your name is Anna.\nYou sell café.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "anna.call"


@pytest.mark.parametrize(("frames", "audio_frames"), [(0, 0), (1, 0), (40, 32), (3_100, 40)])
def test_a_call_is_read_as_it_was_written(path: Path, frames: int, audio_frames: int) -> None:
    written = history(frames, audio_frames)
    write_call(path, SavedCall("nano", ANNA, written))
    call = read_call(path)
    assert (call.model, call.persona) == ("nano", ANNA)
    np.testing.assert_array_equal(call.history.tokens, written.tokens[-3_000:])
    assert call.history.tokens.dtype == np.int16
    np.testing.assert_array_equal(call.history.caller, written.caller[-32 * FRAME_SAMPLES :])
    assert path.stat().st_size < MAX_CALL_FILE_BYTES


def test_a_prompt_that_is_too_long_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"text prompt take \d+ bytes, more than 65536"):
        write_call(path, SavedCall("nano", Persona("NATF2", "x" * 70_000), history(1, 0)))
    assert not path.exists()


def test_bytes_of_a_folder_that_are_no_characters_are_written_as_escapes(path: Path) -> None:
    write_call(path, SavedCall("/models/\udce9", ANNA, history(1, 0)))
    assert read_call(path).model == "/models/\\udce9"


def parts(path: Path) -> tuple[dict[str, object], bytes]:
    line, _, rest = path.read_bytes().partition(b"\n")
    return json.loads(line), rest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"format": "zip"}, "format: Input should be 'personaplex-call'"),
        ({"history": 3_001}, "history: Input should be less than or equal to 3000"),
        ({"history": -1}, "history: Input should be greater"),
        ({"history": "2"}, "history: Input should be a valid integer"),
        ({"history": 0}, "history_audio needs history"),
        ({"history": 1}, "must have 1 to 1 frames of 34 bytes"),
        ({"history": 3}, "begins with 2 comes next, not 3"),
        ({"history_audio": 33}, "history_audio: Input should be less"),
        ({"history_audio": 0}, "it goes on behind the call"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"voice": None}, "voice: Input should be a valid string"),
    ],
)
def test_a_wrong_first_line(path: Path, changed: dict[str, object], message: str) -> None:
    write_call(path, SavedCall("nano", ANNA, history(2, 1)))
    header, rest = parts(path)
    path.write_bytes(json.dumps(header | changed).encode() + b"\n" + rest)
    with pytest.raises(UserError) as caught:
        read_call(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path} is not a saved call of version 1: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not start with a line of JSON"),
        (b"RIFF" * 50_000, "does not start with a line of JSON"),
        (b"{}\n", "model: Field required"),
        (b"[1]\n", "its first line: Input should be an object"),
        (b"[" * 60_000 + b"\n", "its first line: Invalid JSON"),
        (b"\xff\xfe\n", "its first line: Invalid JSON"),
        (b"0" * (MAX_CALL_FILE_BYTES + 1), "more than 1048576 bytes"),
    ],
)
def test_other_files(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_call(path)


def test_wrong_messages(path: Path) -> None:
    write_call(path, SavedCall("nano", ANNA, history(2, 1)))
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    negative = np.full((2, STREAMS), -1, ">i2").tobytes()
    for content, message in (
        (whole[:-1], "its end is missing"),
        (whole[: start + 2], "its end is missing"),
        (whole[:start], "its end is missing"),
        (whole + b"\0", "it goes on behind the call"),
        (whole[:start] + struct.pack(">I", 2**32 - 1) + whole[start + 4 :], "its end is missing"),
        (whole[:start] + struct.pack(">I", 0) + whole[start + 4 :], "not an empty message"),
        (whole[: start + 5] + negative + whole[start + 5 + len(negative) :], "not be negative"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_call(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(UserError, match="there is no such file"):
            read_call(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(path: Path, data: st.DataObject) -> None:
    write_call(path, SavedCall("nano", ANNA, history(2, 1)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        call = read_call(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(call.history, CallHistory) and call.history.tokens.min(initial=0) >= 0
