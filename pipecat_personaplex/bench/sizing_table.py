"""Prints the report of ``personaplex sizing``: assumptions, and a column for each fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipecat_personaplex.constants import FRAME_SECONDS

Report = Mapping[str, Any]
Row = Mapping[str, Any]


def _percent(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row[name] is None:
            return "-"
        percent = 100 * row[name]
        return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"

    return cell


def _both(name: str) -> Callable[[Row], str]:
    return lambda row: (
        "-" if row[name] is None else f"{row[name]['p50']:,.0f} / {row[name]['p99']:,.0f}"
    )


def _drain(row: Row) -> str:
    minutes = row["drain_minutes"]
    return "-" if minutes is None else f"{minutes['p99']:.0f} / {minutes['all']:.0f}"


def _cents(row: Row) -> str:
    dollars = row["dollars_a_caller_hour"]
    return "-" if dollars is None else f"${dollars:.3f}"


_LINES: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("GPUs, of them spare", lambda row: f"{row['gpus']:,}, {row['spare_gpus']}"),
    ("slots for calls", lambda row: f"{row['slots']:,}"),
    ("callers offered, on average", lambda row: f"{row['offered_callers']:,.0f}"),
    ("callers at once, on average", lambda row: f"{row['mean_callers']:,.0f}"),
    ("calls an hour", lambda row: f"{row['calls_an_hour']:,}"),
    ("refused", _percent("refused")),
    ("cost an hour", lambda row: f"${row['dollars_an_hour']:,.2f}"),
    ("cost of a caller for an hour", _cents),
    ("prompts from the cache", _percent("prefix_hits")),
    ("time to join, p50 / p99 ms", _both("join_ms")),
    ("replays an hour", lambda row: f"{row['replays_an_hour']:,}"),
    ("time of a replay, p50 / p99 ms", _both("replay_ms")),
    ("failure domains", lambda row: str(row["domains"])),
    ("minutes to drain one: 99 % of calls / all", _drain),
    ("refused while one is drained", _percent("refused_while_draining")),
    ("callers hit if one fails", _percent("hit_by_failure")),
    ("of them lost", _percent("lost_of_hit")),
    ("silence of those who move, p50 / p99 ms", _both("move_ms")),
    ("refused after a failure", _percent("refused_after_failure")),
)


def describe(report: Report) -> list[str]:
    """The report as lines for a terminal."""
    width = max(len(label) for label, _ in _LINES)
    lines = list(_assumptions(report))
    columns = [[cell(row) for row in report["fleets"]] for _, cell in _LINES]
    widths = [max(len(cells[index]) for cells in columns) for index in range(len(columns[0]))]
    for (label, _), cells in zip(_LINES, columns, strict=True):
        padded = "   ".join(cell.rjust(size) for cell, size in zip(cells, widths, strict=True))
        lines.append(f"{label:{width}}   {padded}")
    return lines


def markdown_table(report: Report) -> list[str]:
    """The report as Markdown: the assumptions, then a table with a column for each fleet."""
    rows = report["fleets"]
    lines = [*(f"- {line}" for line in _assumptions(report)), ""]
    lines.append("| | " + " | ".join(_gpus(row["gpus"]) for row in rows) + " |")
    lines.append("|" + "---|" * (len(rows) + 1))
    lines += [f"| {label} | {' | '.join(cell(row) for row in rows)} |" for label, cell in _LINES]
    return lines


def _assumptions(report: Report) -> Iterator[str]:
    assumed, card = report["assumptions"], report["card"]
    calls, maker = assumed["calls"], assumed["card"]
    step = card["step_ms"] + card["slots"] * card["step_ms_per_call"]
    yield (
        f"{maker['name']}: {maker['gib']:g} GiB free, {maker['gb_s']:,} GB/s, "
        f"{maker['tflops']:,} TFLOPS, ${assumed['dollars']:.2f} an hour; not measured"
    )
    yield (
        f"weights {assumed['quantization'] or 'bfloat16'}, keys and values {assumed['kv_dtype']}, "
        f"{100 * assumed['bandwidth_efficiency']:.0f} % of the bandwidth and "
        f"{100 * assumed['compute_efficiency']:.0f} % of the products are reached, "
        f"{assumed['fixed_ms']:g} ms of a step are fixed"
    )
    yield (
        f"a GPU: {card['by_memory']} callers by memory, {card['by_time']} by time, so "
        f"{card['slots']}, whose step with full windows takes {step:.0f} of "
        f"{FRAME_SECONDS * 1e3:.0f} ms; {card['prefill_frames_per_second']:,.0f} prompt frames/s"
    )
    lengths = (
        f"lognormal with spread {calls['sigma']:g}" if calls["sigma"] else "exponential lengths"
    )
    yield (
        f"calls of {calls['mean_seconds']:g} s on average ({lengths}) that arrive at random; "
        f"{calls['personas']} personas of {calls['prompt_frames']} frames, the k-th used in "
        f"proportion to 1 / k; {_patience(calls['patience'])}; at most "
        f"{100 * assumed['refused']:g} % refused without a failure; {assumed['domain']} GPUs fail "
        f"together; seed {assumed['seed']}"
    )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count:,} GPUs"


def _patience(seconds: float) -> str:
    return f"callers wait {seconds:g} s for a slot" if seconds else "refused callers do not wait"
