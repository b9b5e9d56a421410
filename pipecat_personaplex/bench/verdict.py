"""The verdict of a report in words: how many callers are in time, and what takes too long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipecat_personaplex.bench.parts import ATTENTION
from pipecat_personaplex.constants import FRAME_SECONDS

_FRAME_MS = FRAME_SECONDS * 1e3

Report = Mapping[str, Any]


def judge(report: Report) -> dict[str, Any] | None:
    """Judge the measured batch sizes: each step must end before the next frame arrives.

    A batch size is in time if its 99th percentile is at most 80 ms, and no frame was late where
    steps were run in real time.

    Args:
        report: The report of ``personaplex bench``.

    Returns:
        ``text``, one line; ``callers_in_time``, the largest batch size that is in time, as are all
        smaller ones; ``spare_percent``, the part of a frame that its slowest steps leave; and for
        the smallest batch size that is not in time ``late_callers`` and ``late_parts_ms``, the
        time of the parts that exceed a frame, the longest first. None without measured steps.
    """
    rows = sorted((int(count), row) for count, row in report.get("sessions", {}).items())
    if not rows:
        return None
    in_time, spare, late = 0, None, None
    for callers, row in rows:
        if _is_late(row):
            late = callers
            break
        in_time, spare = callers, math.floor(100 * (1 - _slowest_ms(row) / _FRAME_MS))
    parts = {} if late is None else _exceeding_parts(report.get("parts", {}).get(str(late)))
    phrases = []
    if in_time:
        phrases.append(f"{_callers(in_time)} in time with {spare} % to spare")
    if late is not None:
        reason = _reason(report, late, parts)
        phrases.append(
            f"{_callers(late)} not in time: {reason}" if in_time else f"not in time: {reason}"
        )
    return {
        "text": "; ".join(phrases),
        "callers_in_time": in_time,
        "spare_percent": spare,
        "late_callers": late,
        "late_parts_ms": parts,
    }


def _is_late(row: Mapping[str, Any]) -> bool:
    return _slowest_ms(row) > _FRAME_MS or row.get("soak", {}).get("late", 0) > 0


def _slowest_ms(row: Mapping[str, Any]) -> float:
    """The 99th percentile of the steps, and of the frames' delay in real time if that is longer."""
    return float(max(row["p99_ms"], row.get("soak", {}).get("p99_ms", 0.0)))


def _exceeding_parts(parts: Mapping[str, Mapping[str, float]] | None) -> dict[str, float]:
    """The longest parts of a step whose sum exceeds a frame; none if all together do not."""
    if parts is None:
        return {}
    attention = parts[ATTENTION]["ms"]
    groups = {
        "weights": parts["temporal"]["ms"] - attention + parts["text and depth"]["ms"],
        "attention": attention,
        "codec": parts["encode"]["ms"] + parts["decode"]["ms"],
    }
    chosen: dict[str, float] = {}
    for name in sorted(groups, key=lambda name: -groups[name]):
        chosen[name] = round(groups[name], 1)
        if sum(chosen.values()) > _FRAME_MS:
            return chosen
    return {}


def _reason(report: Report, late: int, parts: Mapping[str, float]) -> str:
    row = report["sessions"][str(late)]
    if parts:
        named = " and ".join(f"{name} {ms:.0f}" for name, ms in parts.items())
        reason = f"{named} ms of {_FRAME_MS:.0f}"
        if "weights" in parts:
            measured = report["parts"][str(late)]
            limit = measured["temporal"]["limit_ms"] - measured[ATTENTION]["limit_ms"]
            limit += measured["text and depth"]["limit_ms"]
            reason += f", and reading the weights once takes {limit:.0f}"
        return reason
    soak = row.get("soak", {})
    if soak.get("late"):
        return f"{soak['late']} of {soak['steps']:,} steps in real time were late"
    return f"a step takes {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f}, of {_FRAME_MS:.0f}"


def _callers(count: int) -> str:
    return f"{count} caller{'' if count == 1 else 's'}"
