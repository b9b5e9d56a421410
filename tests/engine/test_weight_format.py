"""Quantization "auto": the most precise format that fits into free memory, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.engine import memory_plan as memory
from pipecat_personaplex.engine import weight_format
from pipecat_personaplex.engine.memory_plan import (
    MemoryPlan,
    plan_memory,
    resolve_max_sessions,
    resolve_prefix_cache,
)
from pipecat_personaplex.engine.weight_format import INT4_WARNING, resolve_quantization
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models import device as device_module
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.device import Target
from tests.golden_data import CHECKPOINT
from tests.helpers.checkpoints import WIDE
from tests.helpers.logs import recorded

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 1 << 30
SEVEN_B = ModelConfig()


@pytest.fixture(autouse=True)
def a_card_with_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_require_fp8", lambda *_: None)


def free(monkeypatch: pytest.MonkeyPatch, gib: float | None) -> None:
    count = None if gib is None else int(gib * GIB)
    for module in (memory, weight_format):
        monkeypatch.setattr(module, "available_bytes", lambda device: count)


def target(device: torch.device) -> Target:
    return Target(device, torch.bfloat16 if device == CUDA else torch.float32, None)


@pytest.mark.parametrize(
    ("device", "gib", "format"),
    [
        (CUDA, 79, None),
        (CUDA, 23.5, None),
        (CUDA, 20.4, None),  # with a prefix cache of 0.34 GiB
        (CUDA, 20.2, "int8"),
        (CUDA, 15.1, "int8"),
        (CUDA, 13.4, "int4"),
        (CUDA, 7.2, "int4"),  # the smallest, although it does not fit either
        (CUDA, None, None),
        (CPU, 64, None),
        (CPU, 24, "int8"),
        (CPU, 9, "int4"),
    ],
)
def test_the_most_precise_format_that_fits(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, gib: float | None, format: str | None
) -> None:
    free(monkeypatch, gib)
    with recorded("INFO") as log:
        chosen = resolve_quantization(SEVEN_B, EngineConfig(), target(device))
    assert chosen.quantization == format
    if format is None:
        assert log.records == []
        return
    [(*_, line)] = log.records
    assert line.startswith(f"weights are stored as {format} because memory is short (in GiB): ")
    assert f"of {gib:.2f} free" in line
    assert ("bfloat16 needs" if device == CUDA else "float32 needs") in line


def test_more_sessions_need_a_smaller_format(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 25)
    chosen = [
        resolve_quantization(
            SEVEN_B, EngineConfig(max_sessions=sessions), target(CUDA)
        ).quantization
        for sessions in (1, 4, 8)
    ]
    assert chosen == [None, "int8", "int4"]


def test_a_smaller_context_and_fp8_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 11.2)
    config = EngineConfig(kv_dtype="fp8", context=1500)
    small = SEVEN_B.with_options(EngineConfig(context=1500))
    assert resolve_quantization(small, config, target(CUDA)).quantization == "int8"
    assert resolve_quantization(SEVEN_B, EngineConfig(), target(CUDA)).quantization == "int4"


@pytest.mark.parametrize("requested", [None, "int8", "fp8", "int4"])
def test_an_explicit_format_is_taken(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    free(monkeypatch, 1)
    config = EngineConfig(quantization=requested)  # type: ignore[arg-type]
    with recorded("INFO") as log:
        assert resolve_quantization(SEVEN_B, config, target(CUDA)).quantization == requested
    assert log.records == []


def test_stored_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1)
    stored = replace(SEVEN_B, quantization="int8")
    assert resolve_quantization(stored, EngineConfig(), target(CUDA)).quantization is None


def test_an_engine_chooses_and_warns_of_int4(
    monkeypatch: pytest.MonkeyPatch, wide_checkpoint: Path
) -> None:
    config = EngineConfig(device="cpu", max_sessions=1)

    def needed(format: str | None) -> int:
        plan = plan_memory(
            WIDE,
            device=CPU,
            dtype=torch.float32,
            quantization=format,  # type: ignore[arg-type]
            kv_dtype="float32",
            window=WIDE.lm.window,
            slots=1,
            prompt_bytes=0,
        )
        return plan.weights + plan.codec + plan.per_slot

    assert needed("int4") < needed("int8") < needed(None)
    for format, lowest in (("int8", needed("int8")), ("int4", needed("int4"))):
        free(monkeypatch, lowest / GIB)
        with recorded("WARNING") as log:
            engine = Engine.load(wide_checkpoint, config)
        assert engine.checkpoint.quantization == format
        lines = [line for *_, line in log.records]
        assert lines[0].startswith(f"weights are stored as {format} because memory is short")
        assert (INT4_WARNING in lines) == (format == "int4")
    free(monkeypatch, 0.001)
    with pytest.raises(ConfigError, match="not even one session fits"):
        Engine.load(wide_checkpoint, config)


def test_models_that_fit_stay_in_floating_point() -> None:
    engine = Engine.load(CHECKPOINT, EngineConfig(device="cpu", max_sessions=1))
    assert engine.checkpoint.quantization is None


# The rows of docs/performance.md for small cards.


def callers(
    monkeypatch: pytest.MonkeyPatch, gib: float, quantization: str, kv_dtype: str, context: int
) -> tuple[int, float]:
    """Callers without ``max_sessions``, and the GiB of the prefix cache; 0 if none fits."""
    free(monkeypatch, gib)
    config = EngineConfig(kv_dtype=kv_dtype, context=context)  # type: ignore[arg-type]
    small = SEVEN_B.with_options(EngineConfig(context=context))
    chosen = target(CUDA)._replace(quantization=quantization)  # type: ignore[arg-type]
    config = resolve_prefix_cache(small, config, chosen)
    config = resolve_max_sessions(small, config, chosen)
    plan: MemoryPlan = memory.plan_engine(small, config, chosen)
    fits = plan.total <= int(gib * GIB)
    return (config.max_sessions if fits else 0), config.prefix_cache_bytes / GIB


@pytest.mark.parametrize(
    ("gib", "quantization", "kv_dtype", "context", "expected"),
    [
        (7.2, "int4", "fp8", 0, 0),
        (7.2, "int4", "fp8", 750, 1),
        (7.2, "int8", "fp8", 500, 0),
        (11.2, "int4", "fp8", 0, 1),
        (11.2, "int4", "fp8", 1500, 3),
        (11.2, "int8", "fp8", 1500, 1),
        (15.1, "int8", "fp8", 0, 1),
        (15.1, "int8", "fp8", 1500, 5),
        (15.1, "int4", "fp8", 0, 4),
    ],
)
def test_callers_of_small_cards(
    monkeypatch: pytest.MonkeyPatch,
    gib: float,
    quantization: str,
    kv_dtype: str,
    context: int,
    expected: int,
) -> None:
    assert callers(monkeypatch, gib, quantization, kv_dtype, context)[0] == expected


def test_the_prefix_cache_takes_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded("WARNING") as log:
        found, cache = callers(monkeypatch, 7.2, "int4", "fp8", 750)
    assert found == 1 and 0.25 < cache < 0.5
    assert log.records[0][-1].startswith("the prefix cache gets 0.3")
    assert callers(monkeypatch, 15.1, "int8", "fp8", 1500)[1] == 2
