"""The bench's report has what it promises, for a real run; and bad options are told."""

from __future__ import annotations

import io
import json
import struct
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from moshi.utils.compile import no_compile

from pipecat_personaplex.bench import machine, options
from pipecat_personaplex.bench.options import BenchOptions
from pipecat_personaplex.bench.table import markdown_tables
from pipecat_personaplex.cli import main
from pipecat_personaplex.errors import ConfigError
from tests.golden_data import CHECKPOINT

# One thread: two wait for each other for long where others use the processor too.
BENCH = ["bench", "--model", str(CHECKPOINT), "--device", "cpu", "--threads", "1"]
PARTS = ("encode", "temporal", "of it attention", "text and depth", "decode")


@dataclass(frozen=True)
class Run:
    """What one command left behind."""

    lines: list[str]
    report: dict[str, Any]
    picture: bytes


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All measurements, on the tiny checkpoint."""
    picture = tmp_path_factory.mktemp("bench") / "steps.png"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr("pipecat_personaplex.bench.bandwidth._COPY_BYTES", {"cpu": 16 << 20})
        sizes = ["--sessions", "1,8", "--frames", "20", "--prompt-frames", "100"]
        more = ["--fill", "full", "--minutes", "0.004", "--markdown", "--histogram", str(picture)]
        assert main([*BENCH, *sizes, *more]) == 0
    lines = said.getvalue().splitlines()
    return Run(lines, json.loads(lines[-1]), picture.read_bytes())


def test_steps(short_run: Run) -> None:
    report = short_run.report
    assert report["model"] == str(CHECKPOINT)
    assert set(report["sessions"]) == {"1", "8"}
    names = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    for figures in report["sessions"].values():
        assert 0 < figures["p50_ms"]
        assert [figures[name] for name in names] == sorted(figures[name] for name in names)
        assert figures["real_time_factor"] > 0
        assert figures["soak"]["steps"] == 3  # 0.004 minutes
        assert 0 <= figures["soak"]["late"] <= 3
        assert 0 < figures["soak"]["p50_ms"] <= figures["soak"]["max_ms"]
    assert report["batch_8_to_1"] < 8
    assert report["window"] == report["filled"] == 47
    assert "real-time factor" in "\n".join(short_run.lines)


def test_prompts(short_run: Run) -> None:
    prefill = short_run.report["prefill"]
    assert prefill["frames"] == 100
    # What parallel prefill and the prefix cache are for; the bounds are generous.
    assert prefill["stepped_ms"] > 10 * prefill["cold_ms"]
    assert prefill["cold_ms"] > 5 * prefill["cached_ms"]


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
        assert all(min(part.values()) > 0 for part in parts.values())
    bandwidth = report["bandwidth"]
    assert report["copy_gb_s"] > 0
    assert set(bandwidth["attention"]) == {"1"} and set(bandwidth["mlp"]) == {"1", "8", "64"}
    for entry in (*bandwidth["attention"].values(), *bandwidth["mlp"].values()):
        assert min(entry.values()) > 0
        ratio = entry["percent_of_copy"] * report["copy_gb_s"]
        assert ratio == pytest.approx(100 * entry["gb_s"], rel=0.02)
    [attention] = bandwidth["attention"].values()
    assert attention["bytes"] == report["memory"]["plan"]["kv_per_slot"]


def test_the_machine(short_run: Run) -> None:
    report = short_run.report
    assert report["torch"] == torch.__version__
    assert report["threads"] == 1
    assert report["device"] == "cpu" and report["driver"] is None
    assert {"processor", "triton", "commit", "version", "kv_dtype", "dtype"} <= set(report)


def test_the_histogram_is_a_picture(short_run: Run) -> None:
    signature, size = short_run.picture[:8], short_run.picture[16:24]
    assert signature == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", size)
    assert 600 < width < 4000 and 300 < height < 4000
    assert len(short_run.picture) > 5000


def test_the_tables_are_markdown(short_run: Run) -> None:
    tables = read_tables(short_run.lines)
    assert [table[0][0] for table in tables] == [
        "callers",
        "callers in real time",
        "callers",
        "against a copy",
    ]
    steps, soak, parts, bandwidth = tables
    assert [row[0] for row in steps[2:]] == ["1", "8"]
    p50 = short_run.report["sessions"]["8"]["p50_ms"]
    assert steps[3][1:3] == ["47 of 47", f"{p50:.2f}"]
    assert [row[2].split()[-1] for row in soak[2:]] == ["3", "3"]
    assert [row[1] for row in parts[2:]] == 2 * [*PARTS, "rest: launches, copies"]
    whole = sum(float(row[2]) for row in parts[2:8] if row[1] != "of it attention")
    assert whole == pytest.approx(short_run.report["sessions"]["1"]["p50_ms"], abs=0.01)
    assert len(bandwidth[2:]) == 1 + 1 + 3
    caption = short_run.lines[short_run.lines.index("| " + " | ".join(steps[0]) + " |") - 2]
    assert f"torch {torch.__version__}" in caption


def read_tables(lines: list[str]) -> list[list[list[str]]]:
    """Cells by table and row; every row of a table has as many as its head."""
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


def test_a_report_without_the_rest_has_no_tables_of_it(short_run: Run) -> None:
    kept = {k: v for k, v in short_run.report.items() if k not in ("parts", "bandwidth")}
    kept["sessions"] = {"1": {k: v for k, v in kept["sessions"]["1"].items() if k != "soak"}}
    [only] = read_tables(markdown_tables(kept))
    assert only[0][:2] == ["callers", "window filled"]


# The machine's description.


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.26  Release", "570.26"),
        ("no number here", None),
    ],
)
def test_the_driver_of_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, driver: str | None
) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine, "_DRIVER_FILE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert machine._driver() == driver
    (tmp_path / "version").unlink()
    assert machine._driver() is None


def test_the_driver_that_nvidia_smi_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 555.42.02\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._driver() == "555.42.02"


def test_an_installed_package_has_no_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor that of a repository which its environment happens to lie in."""
    monkeypatch.setattr(machine, "_PACKAGE", machine._PACKAGE / "engine")
    assert machine._commit() is None
    monkeypatch.setattr(machine, "_PACKAGE", tmp_path)
    assert machine._commit() is None


# The peer.


def test_the_peer_takes_turns_with_ours(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--frames", "5", "--prompt-frames", "10", "--sessions", "1", "--measure", "prompts"]
    with no_compile():  # compiling its norms would take longer than the test
        code = main([*BENCH, *sizes, "--peer", "moshi"])
    assert code == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not {"sessions", "parts", "bandwidth"} & set(report)
    peer = report["peer"]
    assert set(peer) == {
        *(f"{name}_p50_ms" for name in ("ours", "ours_int8", "moshi")),
        *(f"{name}_speedup" for name in ("ours", "ours_int8")),
    }
    assert min(peer.values()) > 0


def test_a_peer_that_fails_does_not_lose_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("pipecat_personaplex.bench.peer.PeerCall", fail)
    sizes = ["--sessions", "1", "--frames", "1", "--prompt-frames", "2", "--measure", "steps"]
    assert main([*BENCH, *sizes, "--quantization", "int8", "--peer", "moshi"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["peer"] == {
        "error": "RuntimeError: no compiler"
    }
    assert "moshi cannot be run here" in captured.err


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sessions", "1,many"], "must be numbers like 1,2,4,8"),
        (["--sessions", "0"], "at least 1"),
        (["--sessions", "2,2"], "differ"),
        (["--random-1b", "--random-7b"], "choose one of --model, --random-1b and --random-7b"),
        (["--model", "nano", "--random-1b"], "choose one of --model"),
        (["--model", "auto", "--random-7b"], "choose one of --model"),
        (["--frames", "0"], "--frames"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--device", "cuda:99", "--random-1b"], "cuda:99"),
        (["--device", "tpu", "--random-1b"], "tpu"),
        (["--fill", "0"], "full or at least 1"),
        (["--fill", "most"], "--fill must be full or a number"),
        (["--fill", "3000", "--random-7b"], "the window holds 2999"),
        (["--minutes", "nan"], "--minutes"),
        (["--minutes", "-1"], "--minutes"),
        (["--measure", "steps,luck"], "prompts, steps, parts, bandwidth, not luck"),
        (["--measure", "parts", "--minutes", "1"], "need steps"),
        (["--histogram", "steps.svg"], "name it .png"),
        (["--histogram", "/nowhere/steps.png"], "no folder"),
        (["--sessions", "100000", "--fill", "full", "--random-1b"], "too little memory"),
        (["--sessions", "100000", "--fill", "full", "--model", "random-1b"], "too little memory"),
        (["--peer", "vllm"], "--peer"),
    ],
)
def test_bad_options_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    def load(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pipecat_personaplex.bench.run.load_served", load)
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_the_flags_win_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONAPLEX_MODEL", "/nowhere/at/all")
    assert main(["bench", "--device", "cpu", "--random-7b", "--fill", "3000"]) == 2
    assert "the window holds 2999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "package", "remedy"),
    [
        (["--histogram", "steps.png"], "matplotlib", "pip install -e '.[bench]' in the checkout"),
        (["--peer", "moshi"], "einops", "moshi==0.2.13 einops"),
    ],
)
def test_what_is_not_installed_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    package: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == package else object())
    assert main(["bench", "--random-7b", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and remedy in captured.err and captured.err.count("\n") == 1


def test_options_are_checked_where_they_are_made() -> None:
    with pytest.raises(ConfigError, match="nothing"):
        BenchOptions("x", measure=())
    with pytest.raises(ConfigError, match="prompt frames"):
        BenchOptions("x", prompt_frames=1)
