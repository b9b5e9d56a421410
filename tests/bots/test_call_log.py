"""Call records whose disk is full or whose text is broken."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bots.call_log import CallRecord
from tests.helpers.logs import recorded

TIME = "2026-01-31T12:00:00+00:00"


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: a write stops in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_half_a_line_is_taken_back_and_the_next_is_whole(tmp_path: Path) -> None:
    record = CallRecord(tmp_path, {"voice": "NATF2"})
    size = record.path.stat().st_size
    with recorded("ERROR") as log, full_after(size + 20):
        record.add_turn("user", "One spicy, please.", TIME)
    assert record.path.stat().st_size == size
    [(*_, line)] = log.records
    assert line.startswith(f"a line is missing in the call record {record.path}: ")
    record.add_turn("assistant", "Right away.", TIME)
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert [line.get("content") for line in lines] == [None, "Right away."]


def test_a_full_disk_from_the_start_does_not_end_the_call(tmp_path: Path) -> None:
    with recorded("ERROR") as log, full_after(0):
        record = CallRecord(tmp_path, {"voice": "NATF2"})
    record.add_turn("user", "Hello.", TIME)
    assert len(log.records) == 1
    assert [json.loads(line)["content"] for line in record.path.read_text().splitlines()] == [
        "Hello."
    ]


def test_broken_unicode_is_written_as_an_escape(tmp_path: Path) -> None:
    record = CallRecord(tmp_path, {"voice": "NATF2"})
    record.add_turn("user", "caf\udce9", TIME)
    assert json.loads(record.path.read_text().splitlines()[1])["content"] == "caf\udce9"
