"""The drift report: no difference for the same model, small ones for low-bit weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pipecat_personaplex.bench import drift
from pipecat_personaplex.bench.drift import DriftOptions, compare, record
from pipecat_personaplex.bench.models import load_model
from pipecat_personaplex.bench.teacher_forcing import ReferenceRun
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import EngineConfig
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

TINY = DriftOptions(str(CHECKPOINT), frames=60, engine=EngineConfig(device="cpu", dtype="float32"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore the number of threads, which loading a model changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded() -> ReferenceRun:
    return record(TINY)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, float]]:
    code = main(["drift", "--model", str(CHECKPOINT), "--device", "cpu", *arguments])
    assert code == 0
    streams: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out.splitlines()[-1])[
        "streams"
    ]
    assert list(streams) == ["text", *(f"audio {book}" for book in range(8))]
    return streams


def test_a_model_agrees_with_itself(recorded: ReferenceRun) -> None:
    metrics = compare(recorded, TINY)
    assert [values.shape for values in metrics] == 3 * [(60, 9)]
    assert abs(metrics.logit_error).max() == 0
    assert metrics.same_top1.min() == 1
    assert abs(metrics.kl).max() == 0


def test_tokens_of_another_conversation_give_other_logits(recorded: ReferenceRun) -> None:
    first, second = recorded, record(replace(TINY, seed=5))
    assert not torch.equal(first.codes, second.codes)
    crossed = compare(replace(first, logits=second.logits), TINY)
    assert crossed.logit_error[1:].min() > 0.01


@pytest.mark.parametrize(
    ("quantization", "error", "agreement", "divergence"),
    # The tiny checkpoint has few weights, and they are random: errors do not average out.
    [("int8", 0.15, 0.6, 0.2), ("fp8", 0.25, 0.5, 1.2), ("int4", 0.7, 0.15, 9.0)],
)
def test_low_bit_weights_drift_and_stay_close(
    capsys: pytest.CaptureFixture[str],
    quantization: str,
    error: float,
    agreement: float,
    divergence: float,
) -> None:
    arguments = ("--frames", "60", "--input", str(VOICE_SAMPLE))
    streams = report(capsys, "--quantization", quantization, *arguments)
    for row in streams.values():
        assert 0 < row["logit_error"] < error
        assert row["top1_agreement"] > agreement
        assert 0 < row["kl"] < divergence
        # The conversation is longer than the tiny checkpoint's window; errors must not accumulate.
        assert row["last_error"] < 3 * row["first_error"]


def test_conversation_is_sampled_and_repeatable(recorded: ReferenceRun) -> None:
    reference, again = recorded, record(TINY)
    assert torch.equal(reference.codes, again.codes)
    assert torch.equal(reference.text, again.text)
    greedy = torch.stack([logits.text.argmax() for logits in reference.logits])
    assert not torch.equal(reference.text, greedy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "3"], "--frames"),
        (["--input", "/nowhere.wav", "--kv-dtype", "fp8"], "/nowhere.wav does not exist"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--quantization", "int3"], "int3"),
        ([], "nothing differs from float32"),
        (["--model", "random-1b"], "nothing differs from float32"),
        (["--dtype", "float32", "--kv-dtype", "float32"], "nothing differs from float32"),
    ],
)
def test_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(CHECKPOINT)]
    assert main(["drift", *model, "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_recording_is_read_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(drift, "read_architecture", lambda _: pytest.fail("a model was loaded"))
    arguments = ["drift", "--model", str(CHECKPOINT), "--device", "cpu", "--kv-dtype", "fp8"]
    assert main([*arguments, "--input", "/nowhere.wav"]) == 2
    assert "/nowhere.wav does not exist" in capsys.readouterr().err


def test_random_weights_ignore_the_adapter_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERSONAPLEX_ADAPTER", "owner/adapter")
    seen: list[DriftOptions] = []

    def run(options: DriftOptions, *_: object) -> dict[str, object]:
        seen.append(options)
        return {}

    monkeypatch.setattr(drift, "run", run)
    for arguments in ([], ["--adapter", "owner/other"]):
        assert main(["drift", "--model", "random-1b", "--quantization", "int8", *arguments]) == 0
    assert main(["drift", "--model", str(CHECKPOINT)]) == 0
    assert [options.engine.adapter for options in seen] == ["", "owner/other", "owner/adapter"]


def test_report_names_the_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(CHECKPOINT), "--device", "cpu", "--frames", "20"]
    assert main(["drift", *arguments, "--dtype", "bfloat16"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "bfloat16 against float32, 20 frames" in first
    precision = {name: json.loads(last)[name] for name in ("dtype", "quantization", "kv_dtype")}
    assert precision == {"dtype": "bfloat16", "quantization": None, "kv_dtype": "bfloat16"}


def test_small_model_uses_one_thread_unless_a_number_is_given() -> None:
    for requested, used in ((0, 1), (2, 2)):
        torch.set_num_threads(3)
        load_model(str(CHECKPOINT), replace(TINY.engine, cpu_threads=requested))
        assert torch.get_num_threads() == used


def test_progress_counts_the_conversation_and_the_comparison() -> None:
    seen: list[tuple[int, int]] = []
    engine = replace(TINY.engine, kv_dtype="bfloat16")
    drift.run(
        replace(TINY, frames=20, engine=engine),
        lambda line: None,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 40) for done in range(1, 41)]
