"""Low-bit weights at a size where they matter: a random model of about a billion weights."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from statistics import median

import pytest

from pipecat_personaplex.bench import drift
from pipecat_personaplex.bench.drift import DriftOptions, compare, record
from pipecat_personaplex.bench.teacher_forcing import ReferenceRun, TeacherForcedModel
from pipecat_personaplex.config import EngineConfig, Quantization
from tests.helpers.memory import loading_peak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FRAMES = 6


def options(quantization: Quantization | None = None) -> DriftOptions:
    engine = EngineConfig(device="cpu", dtype="float32", quantization=quantization)
    return DriftOptions("random-1b", frames=FRAMES, engine=engine)


class Timed(TeacherForcedModel):
    """Notes how long each step took."""

    seconds: list[float]

    def step(self, *arguments: object) -> object:  # type: ignore[override]
        start = time.perf_counter()
        result = super().step(*arguments)
        Timed.seconds.append(time.perf_counter() - start)
        return result


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(drift, "TeacherForcedModel", Timed)
    monkeypatch.setattr(drift, "_SEGMENTS", FRAMES // 2)
    Timed.seconds = []
    yield
    gc.collect()


@pytest.fixture(scope="module")
def reference() -> tuple[ReferenceRun, float]:
    """The conversation in float32, and the seconds of one of its steps."""
    Timed.seconds = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "TeacherForcedModel", Timed)
        patch.setattr(drift, "_SEGMENTS", FRAMES // 2)
        recorded = record(options())
    gc.collect()
    return recorded, median(Timed.seconds)


@pytest.mark.parametrize(
    ("quantization", "error", "agreement"), [("int8", 0.15, 0.5), ("int4", 1.0, 0.05)]
)
def test_drift_and_speed(
    reference: tuple[ReferenceRun, float],
    quantization: Quantization,
    error: float,
    agreement: float,
) -> None:
    # Random layers add up what each gets wrong, and say nothing of a trained model; but logits that
    # have nothing to do with each other are 1.4 apart.
    recorded, plain = reference
    metrics = compare(recorded, options(quantization))
    low_bit = median(Timed.seconds)
    print(
        f"\n{quantization}: error {metrics.logit_error.mean():.2%}, same top-1 "
        f"{metrics.same_top1.mean():.1%}; a step takes {low_bit * 1e3:.0f} ms, {plain * 1e3:.0f} "
        f"in float32: {plain / low_bit:.2f} times faster"
    )
    assert 0 < metrics.logit_error.mean() < error
    assert metrics.same_top1.mean() > agreement
    # Not slower is asked for, with room for a busy machine; the line above says how it is.
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
def test_loading_takes_little_more_than_the_result(quantization: Quantization) -> None:
    # Like a file's tensors, those of random weights come one at a time.
    peak, result = loading_peak(LOAD, quantization)
    print(f"\n{quantization}: {result / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
    assert result > 0.7e9
    assert peak < 1.2 * result
