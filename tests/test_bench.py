"""The bench's report has what it promises, for a real run; and bad options are told."""

from __future__ import annotations

import json

import pytest
from moshi.utils.compile import no_compile

from pipecat_personaplex.cli import main
from tests.golden_data import CHECKPOINT

BENCH = ["bench", "--model", str(CHECKPOINT), "--device", "cpu"]


def test_report_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*BENCH, "--sessions", "1,8", "--frames", "20"])
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["model"] == str(CHECKPOINT)
    assert set(report["sessions"]) == {"1", "8"}
    for figures in report["sessions"].values():
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
        assert figures["real_time_factor"] > 0
    prefill = report["prefill"]
    assert prefill["frames"] == 300
    # What parallel prefill and the prefix cache are for; the bounds are generous.
    assert prefill["stepped_ms"] > 20 * prefill["cold_ms"]
    assert prefill["cold_ms"] > 5 * prefill["cached_ms"]
    assert report["batch_8_to_1"] < 8
    assert report["memory"]["slot_bytes"] > 0
    assert "real-time factor" in "\n".join(lines)


def test_the_peer_takes_turns_with_ours(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--sessions", "1", "--frames", "5", "--prompt-frames", "10"]
    with no_compile():  # compiling its norms would take longer than the test
        code = main([*BENCH, *sizes, "--peer", "moshi"])
    assert code == 0
    peer = json.loads(capsys.readouterr().out.splitlines()[-1])["peer"]
    assert set(peer) == {
        *(f"{name}_p50_ms" for name in ("ours", "ours_int8", "moshi")),
        *(f"{name}_speedup" for name in ("ours", "ours_int8")),
    }
    assert min(peer.values()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sessions", "1,many"], "must be numbers like 1,2,4,8"),
        (["--sessions", "0"], "at least 1"),
        (["--random-1b", "--random-7b"], "choose one"),
        (["--frames", "0"], "--frames"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--device", "cuda:99", "--random-1b"], "cuda:99"),
        (["--device", "tpu", "--random-1b"], "tpu"),
    ],
)
def test_bad_options_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
