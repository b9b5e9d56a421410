"""``personaplex bench``: mistakes in its options. Its report is tested in tests/bench."""

from __future__ import annotations

import pytest

from pipecat_personaplex.bench import measurements
from pipecat_personaplex.bench.measurements import BenchOptions
from pipecat_personaplex.cli import main
from pipecat_personaplex.errors import UserError


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
        (["--max-seconds", "0.5"], "--max-seconds"),
        (["--max-seconds", "nan"], "--max-seconds"),
        (["--measure", "steps,luck"], "prompts, steps, parts, bandwidth, not luck"),
        (["--measure", "parts", "--minutes", "1"], "need steps"),
        (["--histogram", "steps.svg"], "must end in .png"),
        (["--histogram", "/nowhere/steps.png"], "no folder"),
        (["--sessions", "100000", "--fill", "full", "--random-1b"], "too little memory"),
        (["--sessions", "100000", "--fill", "full", "--model", "random-1b"], "too little memory"),
        (["--peer", "vllm"], "--peer"),
    ],
)
def test_bad_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    def load(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pipecat_personaplex.bench.run.load_model", load)
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_flags_override_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONAPLEX_MODEL", "/nowhere/at/all")
    assert main(["bench", "--device", "cpu", "--random-7b", "--fill", "3000"]) == 2
    assert "the window holds 2999" in capsys.readouterr().err


def test_random_weights_ignore_the_adapter_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def adapter(*arguments: str) -> str:
        """The adapter of the model that would be measured."""
        seen: list[BenchOptions] = []

        def run(options: BenchOptions, echo: object) -> None:
            seen.append(options)
            raise UserError("stop here")

        monkeypatch.setattr("pipecat_personaplex.bench.run.run", run)
        assert main(["bench", "--device", "cpu", *arguments]) == 2
        assert "stop here" in capsys.readouterr().err
        return seen[0].engine.adapter

    monkeypatch.setenv("PERSONAPLEX_ADAPTER", "owner/adapter")
    assert adapter("--random-1b") == adapter("--model", "random-7b") == ""
    assert adapter("--random-1b", "--adapter", "owner/other") == "owner/other"
    assert adapter("--model", "nano") == "owner/adapter"


@pytest.mark.parametrize(
    ("arguments", "package", "remedy"),
    [
        (["--histogram", "steps.png"], "matplotlib", "pip install 'pipecat-personaplex[bench]'"),
        (["--peer", "moshi"], "einops", "moshi==0.2.13 einops"),
    ],
)
def test_missing_package_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    package: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(
        measurements, "find_spec", lambda name: None if name == package else object()
    )
    assert main(["bench", "--random-7b", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and remedy in captured.err and captured.err.count("\n") == 1
