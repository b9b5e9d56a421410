"""``personaplex sizing``: a card's callers, fleets, and mistakes in the options."""

from __future__ import annotations

import json

import pytest

from pipecat_personaplex.bench.erlang import erlang_b
from pipecat_personaplex.bench.fleet import CallModel
from pipecat_personaplex.bench.sizing import CARDS, SizingOptions, card_capacity, size
from pipecat_personaplex.cli import main
from pipecat_personaplex.errors import ConfigError


def test_a_cards_callers_are_those_of_memory_and_of_time() -> None:
    options = SizingOptions(card="h100")
    capacity = card_capacity(options)
    gpu = capacity.gpu
    assert gpu.slots == min(capacity.by_memory, capacity.by_time) > 10
    # Weights of the 7B in int8 take about 8 GB: at 70 % of 3,350 GB/s about 3.5 ms.
    assert gpu.step_ms - options.fixed_ms == pytest.approx(3.5, rel=0.15)
    full = gpu.step_ms + capacity.by_time * gpu.step_ms_per_call
    assert full <= 55 < full + gpu.step_ms_per_call
    # 0.95 of a window of 2,999 frames of 80 ms.
    assert 200 < gpu.replay_after < 228 and 80 < gpu.replay_every < 90


def test_a_card_that_is_too_slow_is_refused() -> None:
    slow = SizingOptions(card="l4", quantization=None, bandwidth_efficiency=0.3)
    with pytest.raises(ConfigError, match="l4 runs no call in time by these assumptions: a step"):
        card_capacity(slow)


def test_fleets_are_as_large_as_requested_or_needed() -> None:
    options = SizingOptions(
        gpus=(1, 24), callers=(400,), hours=0.2, calls=CallModel(mean_seconds=60, sigma=0.5)
    )
    report = size(options)
    slots = report["card"]["slots"]
    one, many, found = report["fleets"]
    assert (one["gpus"], one["spare_gpus"], one["domains"]) == (1, 0, 1)
    assert (many["gpus"], many["spare_gpus"], many["domains"]) == (24, 8, 3)
    assert found["gpus"] * slots > 400
    assert one["offered_callers"] < slots
    assert many["dollars_an_hour"] == 24 * CARDS["h100"].dollars
    # With one domain away as many calls are refused as the options accept.
    assert erlang_b(many["offered_callers"], 16 * slots) == pytest.approx(0.01, rel=0.01)
    assert many["refused"] == 0
    assert many["refused_while_draining"] < 0.05
    assert many["drain_minutes"]["p99"] < many["drain_minutes"]["all"]
    # About a third of the calls are in one of three domains.
    assert many["hit_by_failure"] == pytest.approx(1 / 3, abs=0.03)
    assert one["hit_by_failure"] > 0.9
    # A fleet of one domain loses all of its calls with it.
    assert one["lost_of_hit"] == 1 and many["lost_of_hit"] < 0.1
    assert one["refused_after_failure"] == 1


def test_the_command_prints_assumptions_a_table_and_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--gpus", "1", "--callers", "", "--hours", "0.1", "--price", "2"]
    assert main(["sizing", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not measured" in lines[0] and "$2.00 an hour" in lines[0]
    assert any(line.startswith("cost an hour ") and line.endswith("$2.00") for line in lines)
    report = json.loads(lines[-1])
    assert report["assumptions"]["seed"] == 0 and len(report["fleets"]) == 1
    assert main(["sizing", *arguments, "--markdown"]) == 0
    assert "| cost an hour | $2.00 |" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "many"], "--gpus must be numbers like 1,8,64"),
        (["--gpus", "0"], "gpus must be from 1 to 20,000"),
        (["--gpus", "", "--callers", ""], "give numbers of gpus, of callers"),
        (["--callers", "1000000000"], "callers must be from 1 to 200,000"),
        (["--refused", "0"], "refused must be from 0.0001"),
        (["--refused", "nan"], "refused must be from 0.0001"),
        (["--mean-call", "0"], "mean seconds of a call must be from 5"),
        (["--price", "-1"], "dollars must be from 0"),
        (["--bandwidth-efficiency", "7"], "bandwidth efficiency must be from 0.05 to 1"),
        (["--hours", "1e9"], "hours must be from"),
        (["--card", "a100"], "--card"),
    ],
)
def test_bad_option_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sizing", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
