"""Low-bit weights at a realistic size: a random model of about a billion weights."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from statistics import median

import pytest

from pipecat_personaplex.bench import drift
from pipecat_personaplex.bench.drift import DriftOptions, Lesson, Thinker, examine, teach
from pipecat_personaplex.config import EngineConfig, Quantization
from tests.helpers.memory import loading_peak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FRAMES = 6


def options(quantization: Quantization | None = None) -> DriftOptions:
    engine = EngineConfig(device="cpu", dtype="float32", quantization=quantization)
    return DriftOptions("random-1b", frames=FRAMES, engine=engine)


class Timed(Thinker):
    """Records the duration of each step."""

    seconds: list[float]

    def step(self, *arguments: object) -> object:  # type: ignore[override]
        start = time.perf_counter()
        result = super().step(*arguments)
        Timed.seconds.append(time.perf_counter() - start)
        return result


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(drift, "Thinker", Timed)
    monkeypatch.setattr(drift, "_ENDS", FRAMES // 2)
    Timed.seconds = []
    yield
    gc.collect()


@pytest.fixture(scope="module")
def lesson() -> tuple[Lesson, float]:
    """The conversation in float32, and the median seconds of its steps."""
    Timed.seconds = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "Thinker", Timed)
        patch.setattr(drift, "_ENDS", FRAMES // 2)
        taught = teach(options())
    gc.collect()
    return taught, median(Timed.seconds)


@pytest.mark.parametrize(
    ("quantization", "error", "agreement"), [("int8", 0.15, 0.5), ("int4", 1.0, 0.05)]
)
def test_drift_and_speed(
    lesson: tuple[Lesson, float], quantization: Quantization, error: float, agreement: float
) -> None:
    # Errors accumulate over random layers, so these bounds do not apply to a trained model.
    # Unrelated logits would have an error of 1.4.
    taught, plain = lesson
    figures = examine(taught, options(quantization))
    low_bit = median(Timed.seconds)
    print(
        f"\n{quantization}: error {figures[..., 0].mean():.2%}, same top-1 "
        f"{figures[..., 1].mean():.1%}; a step takes {low_bit * 1e3:.0f} ms, {plain * 1e3:.0f} in "
        f"float32: {plain / low_bit:.2f} times faster"
    )
    assert 0 < figures[..., 0].mean() < error
    assert figures[..., 1].mean() > agreement
    # At least as fast as float32, with a margin for a busy machine.
    assert low_bit < 1.2 * plain


LOAD = """
from pipecat_personaplex.checkpoint.loader import random_model
from pipecat_personaplex.bench.models import RANDOM_MODELS

def load():
    return random_model(
        RANDOM_MODELS["random-1b"],
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        quantization=sys.argv[1],
    )
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_peak_memory_of_loading_is_close_to_the_result(quantization: Quantization) -> None:
    # Random weights are created one tensor at a time, as a file's tensors are read.
    peak, result = loading_peak(LOAD, quantization)
    print(f"\n{quantization}: {result / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
    assert result > 0.7e9
    assert peak < 1.2 * result
