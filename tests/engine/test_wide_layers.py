"""Low-bit weights at a size where they matter: a random model with layers of 2,048 features."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import pytest

from pipecat_personaplex.bench import drift
from pipecat_personaplex.bench.drift import DriftOptions, compare, record
from pipecat_personaplex.bench.models import RANDOM_MODELS
from pipecat_personaplex.bench.teacher_forcing import ReferenceRun, TeacherForcedModel
from pipecat_personaplex.config import EngineConfig, Quantization
from tests.helpers.checkpoints import SMALL_MIMI
from tests.helpers.memory import loading_peaks

FRAMES = 6
# Its weights in float32 are far larger than a cache, so that a step waits for memory.
RANDOM = RANDOM_MODELS["random-1b"]
WIDE = replace(RANDOM, lm=replace(RANDOM.lm, num_layers=2, text_card=2_000), mimi=SMALL_MIMI)


def options(quantization: Quantization | None = None) -> DriftOptions:
    engine = EngineConfig(device="cpu", dtype="float32", quantization=quantization, cpu_threads=1)
    return DriftOptions("wide", frames=FRAMES, engine=engine)


class Timed(TeacherForcedModel):
    """Notes the processor time of each step."""

    seconds: list[float]

    def step(self, *arguments: object) -> object:  # type: ignore[override]
        start = time.thread_time()
        result = super().step(*arguments)
        Timed.seconds.append(time.thread_time() - start)
        return result


@pytest.fixture(scope="module", autouse=True)
def timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANDOM_MODELS, "wide", WIDE)
        patch.setattr(drift, "TeacherForcedModel", Timed)
        patch.setattr(drift, "_SEGMENTS", FRAMES // 2)
        yield


@pytest.fixture(scope="module")
def reference() -> tuple[ReferenceRun, float]:
    """The conversation in float32, and the seconds of one of its steps."""
    Timed.seconds = []
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
    Timed.seconds = []
    metrics = compare(recorded, options(quantization))
    low_bit = median(Timed.seconds)
    print(
        f"\n{quantization}: error {metrics.logit_error.mean():.2%}, same top-1 "
        f"{metrics.same_top1.mean():.1%}; a step takes {low_bit * 1e3:.0f} ms, {plain * 1e3:.0f} "
        f"in float32: {plain / low_bit:.2f} times faster"
    )
    assert 0 < metrics.logit_error.mean() < error
    assert metrics.same_top1.mean() > agreement
    # On one thread. Not slower is required; the line above says how much faster it is.
    assert low_bit < 1.2 * plain


LOAD = """
from dataclasses import replace
from pipecat_personaplex.bench.models import RANDOM_MODELS
from pipecat_personaplex.checkpoint.loader import random_model
from tests.helpers.checkpoints import SMALL_MIMI

config = RANDOM_MODELS["random-1b"]
lm = replace(config.lm, dim=1024, num_layers=2, text_card=2_000)
config = replace(config, lm=lm, mimi=SMALL_MIMI)

def load(quantization):
    return random_model(
        config, device=torch.device("cpu"), dtype=torch.bfloat16, quantization=quantization
    )
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_little_more_than_the_result() -> None:
    # Like a file's tensors, those of random weights come one at a time.
    for peak, result in loading_peaks(LOAD, ["int8", "int4"]):
        print(f"\n{result / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
        assert result > 0.05e9
        assert peak < 1.5 * result
