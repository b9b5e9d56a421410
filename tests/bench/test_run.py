"""The report of ``personaplex bench``, from a real run on the tiny checkpoint."""

from __future__ import annotations

import io
import itertools
import json
import struct
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from moshi.utils.compile import no_compile

from pipecat_personaplex.bench import peer, prompts, steps, timing
from pipecat_personaplex.bench.measurements import BenchOptions
from pipecat_personaplex.bench.models import load_model
from pipecat_personaplex.bench.table import markdown_tables
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import EngineConfig
from tests.bench.fakes import FakeClock
from tests.golden_data import CHECKPOINT

# One thread: on a busy machine two threads wait long for each other.
BENCH = ["bench", "--model", str(CHECKPOINT), "--device", "cpu", "--threads", "1"]
PARTS = ("encode", "temporal", "of which attention", "text and depth", "decode")


@dataclass(frozen=True)
class Run:
    """The output of one command."""

    lines: list[str]
    report: dict[str, Any]
    picture: bytes


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run all measurements on the tiny checkpoint. The real-time steps run on a fake clock."""
    clock = FakeClock()
    # Seconds of three steps. Frames arrive at 0, 80 and 160 ms and are done at 20, 280 and 300 ms.
    durations = itertools.cycle([0.02, 0.2, 0.02])
    picture = tmp_path_factory.mktemp("bench") / "steps.png"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        patch.setattr("pipecat_personaplex.bench.bandwidth._READ_BYTES", {"cpu": 16 << 20})
        patch.setattr(steps, "time", clock)
        patch.setattr(steps, "synchronize", lambda device: clock.sleep(next(durations)))
        sizes = ["--sessions", "1,8", "--frames", "20", "--prompt-frames", "100"]
        more = ["--fill", "full", "--minutes", "0.004", "--markdown", "--histogram", str(picture)]
        assert main([*BENCH, *sizes, *more]) == 0
    lines = output.getvalue().splitlines()
    return Run(lines, json.loads(lines[-1]), picture.read_bytes())


def test_steps(short_run: Run) -> None:
    report = short_run.report
    assert report["model"] == str(CHECKPOINT)
    assert set(report["sessions"]) == {"1", "8"}
    names = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    for row in report["sessions"].values():
        assert 0 < row["p50_ms"]
        assert [row[name] for name in names] == sorted(row[name] for name in names)
        assert row["real_time_factor"] > 0
        soak = row["soak"]
        assert (soak["steps"], soak["late"]) == (3, 2)  # 0.004 minutes are three frames
        assert (soak["p50_ms"], soak["max_ms"]) == (140, 200)
    assert report["batch_8_to_1"] < 8
    assert report["window"] == report["filled"] == 47
    assert "real-time factor" in "\n".join(short_run.lines)


def test_prompts(short_run: Run) -> None:
    prefill = short_run.report["prefill"]
    assert prefill["frames"] == 100
    # Parallel prefill and the prefix cache must be much faster; the bounds are generous.
    assert prefill["stepped_ms"] > 10 * prefill["cold_ms"]
    assert prefill["cold_ms"] > 5 * prefill["cached_ms"]


def test_replays(short_run: Run) -> None:
    replays = short_run.report["replays"]
    assert set(replays) == {"24"}  # 47 frames of window, of which the prompt takes 23
    for row in replays.values():
        assert row["total_ms"] > row["swap_ms"] > 0
        assert row["late"] <= row["stepped"]
    assert any("new prompt for a call of 24 frames" in line for line in short_run.lines)


def test_memory(short_run: Run) -> None:
    memory = short_run.report["memory"]
    assert memory["slot_bytes"] == memory["plan"]["kv_per_slot"] + memory["plan"]["codec_per_slot"]
    assert memory["plan"]["slots"] == 8
    assert any(line.startswith("memory in GiB: weights") for line in short_run.lines)


def test_parts_and_bandwidth(short_run: Run) -> None:
    report = short_run.report
    assert set(report["parts"]) == {"1", "8"}
    for parts in report["parts"].values():
        assert tuple(parts) == PARTS
        # Reading a few kilobytes takes no time that a report could show.
        assert all(min(part["ms"], part["bytes"]) > 0 for part in parts.values())
    bandwidth = report["bandwidth"]
    assert report["read_gb_s"] > 0
    assert set(bandwidth["attention"]) == {"1"} and set(bandwidth["mlp"]) == {"1", "8", "64"}
    for entry in (*bandwidth["attention"].values(), *bandwidth["mlp"].values()):
        assert min(entry.values()) > 0
        expected = 100 * entry["gb_s"] / report["read_gb_s"]
        # gb_s and read_gb_s are rounded to 0.01, percent_of_read to 0.1.
        rounding = 0.05 + (0.6 + 0.006 * expected) / report["read_gb_s"]
        assert entry["percent_of_read"] == pytest.approx(expected, abs=rounding)
    [attention] = bandwidth["attention"].values()
    assert attention["bytes"] == report["memory"]["plan"]["kv_per_slot"]


def test_machine(short_run: Run) -> None:
    report = short_run.report
    assert report["torch"] == torch.__version__
    assert report["threads"] == 1
    assert report["device"] == "cpu" and report["driver"] is None
    assert {"processor", "triton", "commit", "version", "kv_dtype", "dtype"} <= set(report)


def test_histogram_is_a_png(short_run: Run) -> None:
    signature, size = short_run.picture[:8], short_run.picture[16:24]
    assert signature == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", size)
    assert 600 < width < 4000 and 300 < height < 4000
    assert len(short_run.picture) > 5000


def test_tables_are_markdown(short_run: Run) -> None:
    tables = read_tables(short_run.lines)
    assert [table[0][0] for table in tables] == [
        "callers",
        "callers in real time",
        "callers",
        "against reading memory",
    ]
    steps, soak, parts, bandwidth = tables
    assert [row[0] for row in steps[2:]] == ["1", "8"]
    p50 = short_run.report["sessions"]["8"]["p50_ms"]
    assert steps[3][1:3] == ["47 of 47", f"{p50:.2f}"]
    assert [row[2:4] for row in soak[2:]] == 2 * [["2 of 3", "140.00"]]
    assert [row[1] for row in parts[2:]] == 2 * [*PARTS, "rest: launches, copies"]
    whole = sum(float(row[2]) for row in parts[2:8] if row[1] != "of which attention")
    assert whole == pytest.approx(short_run.report["sessions"]["1"]["p50_ms"], abs=0.01)
    assert len(bandwidth[2:]) == 1 + 1 + 3
    caption = short_run.lines[short_run.lines.index("| " + " | ".join(steps[0]) + " |") - 4]
    assert f"torch {torch.__version__}" in caption


def read_tables(lines: list[str]) -> list[list[list[str]]]:
    """Return the cells by table and row; check that all rows of a table are equally long."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in lines:
        if line.startswith("|"):
            if not inside:
                tables.append([])
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    for table in tables:
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
    return tables


def test_tables_leave_out_what_was_not_measured(short_run: Run) -> None:
    report = {k: v for k, v in short_run.report.items() if k not in ("parts", "bandwidth")}
    report["sessions"] = {"1": {k: v for k, v in report["sessions"]["1"].items() if k != "soak"}}
    [only] = read_tables(markdown_tables(report))
    assert only[0][:2] == ["callers", "window filled"]


# Comparison with moshi.


def test_peer_is_timed_next_to_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--frames", "5", "--prompt-frames", "10", "--sessions", "1", "--measure", "prompts"]
    with no_compile():  # Compiling moshi's norms would take longer than the test.
        code = main([*BENCH, *sizes, "--peer", "moshi"])
    assert code == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not {"sessions", "parts", "bandwidth"} & set(report)
    times = report["peer"]
    assert times.pop("frames") == {"ours": 5, "ours_int8": 5, "moshi": 5}
    assert set(times) == {
        *(f"{name}_p50_ms" for name in ("ours", "ours_int8", "moshi")),
        *(f"{name}_speedup" for name in ("ours", "ours_int8")),
    }
    assert min(times.values()) > 0


def test_failing_peer_does_not_lose_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("pipecat_personaplex.bench.peer.PeerSession", fail)
    sizes = ["--sessions", "1", "--frames", "1", "--prompt-frames", "2", "--measure", "steps"]
    assert main([*BENCH, *sizes, "--quantization", "int8", "--peer", "moshi"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["peer"] == {
        "error": "RuntimeError: no compiler"
    }
    assert "moshi cannot be run here" in captured.err


# The verdict, and the limit of slow comparisons.


def test_the_report_ends_with_a_verdict(short_run: Run) -> None:
    verdict = short_run.report["verdict"]
    # On the fake clock two of three frames in real time are late.
    assert verdict["callers_in_time"] == 0 and verdict["late_callers"] == 1
    assert short_run.lines[-1].startswith("{")
    assert f"verdict: {verdict['text']}" in short_run.lines
    assert f"**{verdict['text']}**" in short_run.lines
    assert verdict["text"].startswith("not in time: ")


def test_slow_comparisons_stop_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt and a peer of 30 ms a step have one second each."""
    clock = FakeClock()
    model = load_model(str(CHECKPOINT), EngineConfig(device="cpu"))
    options = BenchOptions(str(CHECKPOINT), frames=100, prompt_frames=100, max_seconds=1)

    embed = model.lm.embed
    monkeypatch.setattr(prompts, "time", clock)
    monkeypatch.setattr(model.lm, "embed", lambda tokens: (clock.sleep(0.03), embed(tokens))[1])
    seconds, frames = prompts._step(model, prompts.random_prompt(model, 100), 1.0)
    assert frames == 34 and seconds == pytest.approx(1.02)

    monkeypatch.setattr(timing, "time", clock)
    step = lambda: clock.sleep(0.03)  # noqa: E731
    assert peer._frames(step, options, model.device) == 33 - 10
    assert peer._frames(lambda: clock.sleep(0.001), options, model.device) == 100
    assert peer._frames(lambda: clock.sleep(5.0), options, model.device) == 1
