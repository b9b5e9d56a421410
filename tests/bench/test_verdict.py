"""The verdict of a report in words."""

from __future__ import annotations

from typing import Any

import pytest

from pipecat_personaplex.bench.table import markdown_tables
from pipecat_personaplex.bench.verdict import judge


def row(p99: float, **soak: float) -> dict[str, Any]:
    return {"p50_ms": p99 - 5, "p99_ms": p99} | ({"soak": soak} if soak else {})


def parts(**milliseconds: float) -> dict[str, Any]:
    times = {"encode": 3.0, "decode": 4.0, "temporal": 0.0, "text and depth": 20.0}
    times |= {"of which attention": milliseconds.pop("attention", 10.0)} | milliseconds
    return {name: {"ms": ms, "limit_ms": ms / 2} for name, ms in times.items()}


@pytest.mark.parametrize(
    ("rows", "callers", "text"),
    [
        ({"1": row(20), "8": row(48.0)}, 8, "8 callers in time with 40 % to spare"),
        ({"1": row(79.9)}, 1, "1 caller in time with 0 % to spare"),
        (
            {"8": row(30), "16": row(112.0), "1": row(10)},
            8,
            "8 callers in time with 62 % to spare; 16 callers not in time: a step takes 107 ms, "
            "p99 112, of 80",
        ),
        # A batch size behind one that is late does not count.
        (
            {"1": row(10), "2": row(90), "4": row(20)},
            1,
            "1 caller in time with 87 % to spare; 2 callers not in time: a step takes 85 ms, p99 "
            "90, of 80",
        ),
        # Real time counts: its delay includes steps that came late before.
        (
            {"4": row(40, late=0, steps=100, p99_ms=60.0)},
            4,
            "4 callers in time with 25 % to spare",
        ),
        (
            {"4": row(40, late=3, steps=7500, p99_ms=60.0)},
            0,
            "not in time: 3 of 7,500 steps in real time were late",
        ),
    ],
)
def test_words(rows: dict[str, Any], callers: int, text: str) -> None:
    verdict = judge({"sessions": rows})
    assert verdict is not None
    assert verdict["text"] == text
    assert verdict["callers_in_time"] == callers


def test_the_parts_that_exceed_a_frame_are_named() -> None:
    report = {"sessions": {"1": row(190)}, "parts": {"1": parts(temporal=145.0, attention=20.0)}}
    verdict = judge(report)
    assert verdict is not None
    assert verdict["text"] == (
        "not in time: weights 145 ms of 80, and reading the weights once takes 72"
    )
    assert verdict["late_parts_ms"] == {"weights": 145.0}
    report["parts"] = {"1": parts(temporal=110.0, attention=70.0)}
    verdict = judge(report)
    assert verdict is not None
    assert verdict["text"].startswith("not in time: attention 70 and weights 60 ms of 80, and ")
    # Parts that fit into a frame explain nothing.
    report["parts"] = {"1": parts(temporal=30.0)}
    verdict = judge(report)
    assert verdict is not None and verdict["late_parts_ms"] == {}
    assert verdict["text"] == "not in time: a step takes 185 ms, p99 190, of 80"


def test_without_steps_there_is_none() -> None:
    assert judge({"prefill": {}}) is None


def test_tables_start_with_it() -> None:
    report = {
        "sessions": {},
        "verdict": {"text": "8 callers in time with 40 % to spare"},
        **dict.fromkeys(("quantization", "driver", "triton", "commit", "processor")),
        **dict.fromkeys(("dtype", "model", "kv_dtype", "threads", "torch", "version"), "x"),
        "device": "cpu",
    }
    assert markdown_tables(report)[1:] == ["", "**8 callers in time with 40 % to spare**"]
