"""Markdown tables of a report, ready for a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipecat_personaplex.bench.parts import ATTENTION

Report = Mapping[str, Any]


def markdown_tables(report: Report) -> list[str]:
    """Return lines: caption, verdict, then one table for each kind of measurement in the report."""
    lines = [caption(report)]
    if "verdict" in report:
        lines += ["", f"**{report['verdict']['text']}**"]
    on_gpu = any("peak_bytes" in row for row in report.get("sessions", {}).values())
    for head, rows in (
        ((*_STEPS, _GPU_MEMORY) if on_gpu else _STEPS, list(_step_rows(report))),
        (_SOAK, list(_soak_rows(report))),
        (_PARTS, list(_part_rows(report))),
        (_BANDWIDTH, list(_bandwidth_rows(report))),
    ):
        if rows:
            lines += ["", *_table(head, rows)]
    return lines


_STEPS = (
    "callers",
    "window filled",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "real-time factor",
)
_GPU_MEMORY = "GPU memory, GiB"
_SOAK = ("callers in real time", "minutes", "late", "p50 ms", "p95 ms", "p99.9 ms", "max ms")
_PARTS = ("callers", "part", "ms", "MB read", "limit ms", "of limit")
_BANDWIDTH = ("against reading memory", "GB/s", "of reading")


def caption(report: Report) -> str:
    """Return one line that names the model, its precisions, the machine and the versions."""
    weights = report["quantization"] or report["dtype"]
    parts = [
        f"{report['model']}, {weights} weights, {report['kv_dtype']} KV",
        f"{report['device'] if report['device'] != 'cpu' else report['processor'] or 'cpu'}",
        f"driver {report['driver']}" if report["driver"] else f"threads {report['threads']}",
        f"torch {report['torch']}",
        f"Triton {report['triton']}" if report["triton"] else "no Triton",
        f"commit {report['commit']}" if report["commit"] else f"version {report['version']}",
    ]
    return "; ".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from map(_row, rows)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _step_rows(report: Report) -> Iterator[Sequence[object]]:
    for callers, row in report.get("sessions", {}).items():
        yield (
            callers,
            f"{report['filled']:,} of {report['window']:,}",
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
            f"{row['real_time_factor']:.3f}",
            *([f"{row['peak_bytes'] / 2**30:.2f}"] if "peak_bytes" in row else []),
        )


def _soak_rows(report: Report) -> Iterator[Sequence[object]]:
    for callers, row in report.get("sessions", {}).items():
        if "soak" in row:
            soak = row["soak"]
            names = ("p50_ms", "p95_ms", "p999_ms", "max_ms")
            late = f"{soak['late']} of {soak['steps']:,}"
            yield callers, f"{soak['minutes']:g}", late, *(f"{soak[name]:.2f}" for name in names)


def _part_rows(report: Report) -> Iterator[Sequence[object]]:
    for callers, parts in report.get("parts", {}).items():
        for name, part in parts.items():
            yield (
                callers,
                name,
                f"{part['ms']:.3f}",
                f"{part['bytes'] / 1e6:,.1f}",
                f"{part['limit_ms']:.3f}",
                f"{part['percent_of_limit']:.0f} %",
            )
        if callers in report.get("sessions", {}):
            parts_ms = sum(part["ms"] for name, part in parts.items() if name != ATTENTION)
            rest = report["sessions"][callers]["p50_ms"] - parts_ms
            yield callers, "rest: launches, copies", f"{rest:.3f}", "", "", ""


def _bandwidth_rows(report: Report) -> Iterator[Sequence[object]]:
    bandwidth = report.get("bandwidth")
    if bandwidth is None:
        return
    yield "reading memory", f"{report['read_gb_s']:,.1f}", "100 %"
    for kind, label in (("attention", "attention, full windows"), ("mlp", "gated MLPs")):
        for count, entry in bandwidth[kind].items():
            unit = "caller" if kind == "attention" else "row"
            unit += "" if count == "1" else "s"
            yield (
                f"{label}, {count} {unit}",
                f"{entry['gb_s']:,.1f}",
                f"{entry['percent_of_read']:.0f} %",
            )
