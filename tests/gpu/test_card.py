"""On a CUDA device: the memory plan matches the memory in use, and the benchmark is consistent."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator

import pytest
import torch

from pipecat_personaplex.bench.measurements import BenchOptions, Fill
from pipecat_personaplex.bench.models import load_model, read_architecture
from pipecat_personaplex.bench.steps import soak
from pipecat_personaplex.bench.workload import (
    new_runner,
    noise_prefix,
    start_sessions,
    step_call,
)
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.free_memory import available_bytes
from pipecat_personaplex.engine.memory_plan import plan_engine
from pipecat_personaplex.models.device import resolve_target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# A longer run: PERSONAPLEX_SOAK_MINUTES=10 PYTHONPATH=. python -m pytest tests/gpu -k real_time
SOAK_MINUTES = float(os.environ.get("PERSONAPLEX_SOAK_MINUTES", "1"))
SOAK_CALLERS = int(os.environ.get("PERSONAPLEX_SOAK_CALLERS", "16"))


@pytest.fixture(autouse=True)
def empty_device() -> Iterator[None]:
    """Free the memory of earlier tests, so that memory can be measured."""
    gc.collect()
    torch.cuda.empty_cache()
    yield


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_memory_plan_matches_the_memory_in_use(quantization: str | None) -> None:
    engine = EngineConfig(device="cuda", quantization=quantization, max_sessions=4)  # type: ignore[arg-type]
    target = resolve_target("cuda", "auto", quantization)  # type: ignore[arg-type]
    plan = plan_engine(read_architecture("random-1b"), engine, target)
    before = torch.cuda.memory_allocated()
    model = load_model("random-1b", engine)
    weights = torch.cuda.memory_allocated() - before
    assert weights == pytest.approx(plan.weights + plan.codec, rel=0.02)
    free = available_bytes(target.device)
    assert free is not None
    runner = new_runner(model, engine.max_sessions)
    step_call(runner, engine.max_sessions)()
    taken = free - available_bytes(target.device)  # type: ignore[operator]
    assert plan.slots * plan.per_slot <= taken
    assert taken < plan.slots * (plan.per_slot + plan.workspace_per_slot) + plan.workspace


def test_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sessions", "1,8", "--frames", "50", "--fill", "full", "--minutes", "0.02"]
    assert main(["bench", "--random-1b", "--device", "cuda", *arguments, "--markdown"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    report = json.loads(lines[-1])
    assert report["driver"] and report["triton"] and report["cuda"]
    assert report["device"] == torch.cuda.get_device_name()
    for row in report["sessions"].values():
        assert row["peak_bytes"] > report["memory"]["model_bytes"] * 0.9
        assert row["soak"]["late"] == 0
    # Nothing is much faster than reading memory.
    for entry in (*report["bandwidth"]["attention"].values(), report["bandwidth"]["mlp"]["1"]):
        assert 5 < entry["percent_of_read"] < 130
    # Every part was captured: its time is that of the device, not of launches.
    assert "cannot be captured" not in captured.err
    # The parts together take no longer than the step.
    for count, parts in report["parts"].items():
        whole = sum(part["ms"] for name, part in parts.items() if name != "of which attention")
        assert whole < 1.2 * report["sessions"][count]["p50_ms"]


@pytest.mark.slow
@pytest.mark.timeout(60 * (SOAK_MINUTES + 5))
def test_full_windows_in_real_time() -> None:
    """All sessions step in every frame: no frame is late, memory is constant, output is finite."""
    engine = EngineConfig(device="cuda")
    model = load_model("random-1b", engine)
    device = resolve_target("cuda", "auto", None).device
    options = BenchOptions("random-1b", engine, fill="full")
    fill = Fill.of(options, model.window, model.config.mimi.window)
    runner = new_runner(model, SOAK_CALLERS)
    start_sessions(runner, SOAK_CALLERS, noise_prefix(model, fill.positions), fill)
    step = step_call(runner, SOAK_CALLERS)
    for _ in range(5):
        step()
    before = torch.cuda.memory_allocated()
    report, _ = soak(step, SOAK_MINUTES, device)
    assert report["late"] == 0, report
    assert report["p999_ms"] < 80
    assert torch.cuda.memory_allocated() <= before + (1 << 20)  # no leak
    output = step()
    assert output.finite.all() and output.pcm.isfinite().all()  # type: ignore[attr-defined]
