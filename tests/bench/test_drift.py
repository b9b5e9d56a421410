"""The drift report: nothing where nothing differs, something where weights are low-bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pipecat_personaplex.bench import drift
from pipecat_personaplex.bench.drift import DriftOptions, examine, teach
from pipecat_personaplex.bench.models import load_subject
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import EngineConfig
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

TINY = DriftOptions(str(CHECKPOINT), frames=60, engine=EngineConfig(device="cpu", dtype="float32"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many as there were, after a model has set its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, float]]:
    code = main(["drift", "--model", str(CHECKPOINT), "--device", "cpu", *arguments])
    assert code == 0
    streams: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out.splitlines()[-1])[
        "streams"
    ]
    assert list(streams) == ["text", *(f"audio {book}" for book in range(8))]
    return streams


def test_a_model_agrees_with_itself() -> None:
    figures = examine(teach(TINY), TINY)
    assert figures.shape == (60, 9, 3)
    assert abs(figures[..., 0]).max() == 0
    assert figures[..., 1].min() == 1


def test_another_conversation_has_other_opinions() -> None:
    first, second = teach(TINY), teach(replace(TINY, seed=5))
    assert not torch.equal(first.codes, second.codes)
    crossed = examine(type(first)(first.user_codes, first.text, first.codes, second.opinions), TINY)
    assert crossed[1:, :, 0].min() > 0.01


@pytest.mark.parametrize(
    ("quantization", "error", "agreement", "divergence"),
    # The tiny checkpoint's few random weights average no errors out.
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
    for figures in streams.values():
        assert 0 < figures["logit_error"] < error
        assert figures["top1_agreement"] > agreement
        assert 0 < figures["kl"] < divergence
        # Past the window, which the tiny checkpoint has left here, errors do not pile up.
        assert figures["last_error"] < 3 * figures["first_error"]


def test_the_conversation_is_drawn_and_repeatable() -> None:
    lesson, again = teach(TINY), teach(TINY)
    assert torch.equal(lesson.codes, again.codes)
    assert torch.equal(lesson.text, again.text)
    likeliest = torch.stack([opinion.text.argmax() for opinion in lesson.opinions])
    assert not torch.equal(lesson.text, likeliest)


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
def test_mistakes_are_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(CHECKPOINT)]
    assert main(["drift", *model, "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_it_says_what_it_compared(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(CHECKPOINT), "--device", "cpu", "--frames", "20"]
    assert main(["drift", *arguments, "--dtype", "bfloat16"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "bfloat16 against float32, 20 frames" in first
    said = {name: json.loads(last)[name] for name in ("dtype", "quantization", "kv_dtype")}
    assert said == {"dtype": "bfloat16", "quantization": None, "kv_dtype": "bfloat16"}


def test_a_small_model_takes_one_thread_and_another_number_where_it_is_given() -> None:
    for asked, used in ((0, 1), (2, 2)):
        torch.set_num_threads(3)
        load_subject(str(CHECKPOINT), replace(TINY.engine, cpu_threads=asked))
        assert torch.get_num_threads() == used


def test_how_far_it_is() -> None:
    """Both halves count: the conversation, and the same tokens again."""
    seen: list[tuple[int, int]] = []
    engine = replace(TINY.engine, kv_dtype="bfloat16")
    drift.run(
        replace(TINY, frames=20, engine=engine),
        lambda line: None,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 40) for done in range(1, 41)]
