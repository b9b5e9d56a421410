"""The drift report: nothing where nothing differs, something where weights are low-bit."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from pipecat_personaplex.cli import main
from pipecat_personaplex.drift import DriftOptions, examine, teach
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

TINY = DriftOptions(str(CHECKPOINT), frames=60, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only slow the tiny model down
    yield
    torch.set_num_threads(threads)


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
    first, second = teach(TINY), teach(DriftOptions(**{**vars(TINY), "seed": 5}))
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
        (["--input", "/nowhere.wav"], "/nowhere.wav does not exist"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--quantization", "int3"], "int3"),
    ],
)
def test_mistakes_are_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(CHECKPOINT)]
    assert main(["drift", *model, "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err
