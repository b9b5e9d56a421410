"""The memory plan equals the memory that is used, and a plan that does not fit is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loguru import logger

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.loader import load_checkpoint, random_model
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.engine import free_memory, model_bytes
from pipecat_personaplex.engine import memory_plan as memory
from pipecat_personaplex.engine.cuda_graphs import spare_slots
from pipecat_personaplex.engine.free_memory import available_bytes
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.memory_plan import (
    MemoryPlan,
    plan_memory,
    require_memory,
    resolve_max_sessions,
)
from pipecat_personaplex.engine.model_bytes import kv_bytes
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import LMConfig, MimiConfig, ModelConfig
from pipecat_personaplex.models.device import Target
from tests.golden_data import CHECKPOINT
from tests.helpers.checkpoints import WIDE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 1 << 30


def plan(config: ModelConfig, **changes: object) -> MemoryPlan:
    arguments: dict[str, object] = {
        "device": CPU,
        "dtype": torch.float32,
        "quantization": None,
        "kv_dtype": "float32",
        "window": config.lm.window,
        "slots": 3,
        "prompt_bytes": 0,
    }
    return plan_memory(config, **(arguments | changes))  # type: ignore[arg-type]


def allocated(model: torch.nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("config", [WIDE, "tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "int8", "fp8", "int4"])
def test_the_plan_equals_the_allocated_memory(
    config: ModelConfig | str, dtype: torch.dtype, quantization: Quantization | None
) -> None:
    if isinstance(config, str):
        checkpoint = load_checkpoint(CHECKPOINT, device=CPU, dtype=dtype, quantization=quantization)
        config, lm, mimi = checkpoint.config, checkpoint.lm, checkpoint.mimi
    else:
        lm, mimi = random_model(config, device=CPU, dtype=dtype, quantization=quantization)
    kv_dtype = str(dtype).removeprefix("torch.")
    planned = plan(config, dtype=dtype, quantization=quantization, kv_dtype=kv_dtype)
    assert planned.weights == allocated(lm)
    assert planned.codec - planned.codec_per_slot == allocated(mimi)
    ring = RingCache.for_lm(lm, 3, CPU)
    assert planned.kv_per_slot * 3 == ring.nbytes
    runner = ModelRunner(config, lm, mimi, 3, CPU)
    assert planned.per_slot == runner.slot_bytes


def test_the_release() -> None:
    """The 7B's parameters, keys and values, computed by hand from its published shapes."""
    full = plan(ModelConfig(), device=CUDA, dtype=torch.bfloat16, kv_dtype="bfloat16")
    assert full.kv_per_slot == 2999 * 512 * 1024
    assert full.weights == pytest.approx(15.4e9, rel=0.01)
    eight = plan(ModelConfig(), device=CUDA, dtype=torch.bfloat16, quantization="int8")
    four = plan(ModelConfig(), device=CUDA, dtype=torch.bfloat16, quantization="int4")
    temporal = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_264)
    depth = 8 * (6 * (4 * 1024 * 1024 + 3 * 1024 * 2816) + 4096 * 1024)
    saved = full.weights - eight.weights
    assert saved == pytest.approx(temporal + depth, rel=0.002)  # a byte per weight, less the scales
    assert eight.weights - four.weights == pytest.approx(temporal / 2, rel=0.035)


def test_types_of_keys_and_values() -> None:
    config = LMConfig()
    assert kv_bytes(config, 2999, "float32") == 2 * kv_bytes(config, 2999, "bfloat16")
    # One byte per feature, and a scale of four bytes per head of 128.
    per_frame = 2 * 32 * 32 * (128 + 4)
    assert kv_bytes(config, 2999, "fp8") == 2999 * per_frame
    assert kv_bytes(config, 1000, "fp8") == 1000 * per_frame


def test_without_triton_cuda_gathers_one_layers_rings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def workspace() -> int:
        planned = plan_memory(
            config,
            device=CUDA,
            dtype=torch.bfloat16,
            quantization=None,
            kv_dtype="bfloat16",
            window=300,
            slots=5,
            prompt_bytes=0,
        )
        return planned.total

    config = ModelConfig()
    monkeypatch.setattr(model_bytes, "find_spec", lambda name: object())
    with_kernels = workspace()
    monkeypatch.setattr(model_bytes, "find_spec", lambda name: None)
    assert workspace() - with_kernels == 5 * 2 * 300 * config.lm.dim * 2


# Free memory, and the errors and warnings if it is too little.


@pytest.fixture
def messages() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level}: {message}")
    yield lines
    logger.remove(sink)


PLAN = MemoryPlan(
    weights=14 * GIB,
    codec=GIB // 2,
    kv_per_slot=GIB,
    codec_per_slot=GIB // 4,
    slots=8,
    spare_slots=1,
    prompts=2 * GIB,
    replay=0,
    workspace=GIB,
    workspace_per_slot=0,
    quantization=None,
    kv_dtype="bfloat16",
)


@pytest.mark.parametrize(
    ("free", "fits"),
    [(23, "max_sessions 3 would fit"), (18.5, "not even one session fits")],
)
def test_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch, free: float, fits: str) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(free * GIB))
    with pytest.raises(ConfigError) as refused:
        require_memory(PLAN, CUDA)
    message = str(refused.value)
    assert fits in message
    for part in (
        "weights 14.00 + codec 0.50 + (8 sessions and 1 spare) x 1.25",
        "= 28.75",
        f"of {free:.2f} free",
        "kv_dtype fp8, a smaller context, quantization int8 or quantization int4 need less",
    ):
        assert part in message


def test_one_session_runs_without_room_for_a_replay(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    one = replace(PLAN, slots=1, spare_slots=0, replay=GIB)
    free = one.total - GIB
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    assert one.fitting_slots(free) == 1
    require_memory(one, CUDA)
    assert "too little for a replay" in messages[-1]
    assert one.fitting_slots(free - 1) == 0
    with pytest.raises(ConfigError):
        require_memory(replace(one, slots=2), CUDA)
    free -= 1
    with pytest.raises(ConfigError, match=r"replay 1.00 .* not even one session fits"):
        require_memory(one, CUDA)


def test_the_prefix_cache_gives_way_to_one_session_without_room_for_a_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(CUDA, torch.bfloat16, "int4")
    config = EngineConfig(kv_dtype="bfloat16", max_sessions=1)
    planned = memory.plan_engine(ModelConfig(), config, target)
    least = planned.total - planned.replay - planned.prompts
    for free, cached in ((least + GIB // 2, GIB // 2), (least, 0), (least - 1, planned.prompts)):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=free: free)
        resolved = memory.resolve_prefix_cache(ModelConfig(), config, target)
        assert resolved.prefix_cache_bytes == cached
        fits = memory.plan_engine(ModelConfig(), resolved, target)
        if free >= least:
            require_memory(fits, CUDA)
        else:
            with pytest.raises(ConfigError, match="not even one session fits"):
                require_memory(fits, CUDA)


def test_few_sessions_need_no_spare_slot() -> None:
    slot = PLAN.per_slot
    reserved = PLAN.fixed
    assert [PLAN.fitting_slots(reserved + room * slot) for room in range(7)] == [
        *(0, 1, 2, 3, 3, 4, 5)
    ]


@pytest.mark.parametrize("per_slot", [0, GIB // 8])
def test_the_suggested_number_fits_and_one_more_does_not(per_slot: int) -> None:
    requested = replace(PLAN, workspace_per_slot=per_slot)
    for free in range(17, 80):
        count = requested.fitting_slots(free * GIB)
        needed = [
            replace(requested, slots=slots, spare_slots=spare_slots(slots)).total
            for slots in (count, count + 1)
        ]
        assert needed[0] <= free * GIB or count == 0
        assert needed[1] > free * GIB


# The number of sessions if none is configured.


def resolved_sessions(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, free: float | None, sessions: int = 0
) -> int:
    """Sessions of the 7B on a device with this much free memory, in GiB."""
    available = None if free is None else int(free * GIB)
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = EngineConfig(max_sessions=sessions)
    return resolve_max_sessions(ModelConfig(), config, Target(device, dtype, None)).max_sessions


@pytest.mark.parametrize(
    ("device", "free", "sessions"),
    [
        (CUDA, 79, 8),
        (CUDA, 25, 2),
        (CUDA, 23.5, 1),
        (CUDA, 22, 1),  # without room for a replay
        (CUDA, 10, 1),  # not even one fits
        (CUDA, None, 8),
        (CPU, 64, 8),
        (CPU, 48, 4),
        (CPU, None, 8),
    ],
)
def test_without_a_configured_number_as_many_sessions_as_fit(
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    device: torch.device,
    free: float | None,
    sessions: int,
) -> None:
    assert resolved_sessions(monkeypatch, device, free) == sessions
    if sessions == 8 or free == 10:
        assert messages == []
    else:
        [line] = messages
        assert line.startswith(f"WARNING: max_sessions {sessions}, as no more fit")
        assert "8 sessions" in line and f"of {free:.2f} free" in line


def test_a_configured_number_stays(monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    assert resolved_sessions(monkeypatch, CUDA, 23.5, sessions=4) == 4
    assert messages == []


def test_an_engine_runs_as_many_sessions_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine.load(CHECKPOINT, EngineConfig(device="cpu")).stats().max_sessions == 8
    config = read_config(CHECKPOINT / "config.json")
    eight = plan(config, slots=8, prompt_bytes=EngineConfig.prefix_cache_bytes)
    free = eight.total - 3 * eight.per_slot
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    assert Engine.load(CHECKPOINT, EngineConfig(device="cpu")).stats().max_sessions == 5
    # A configured number is used: on a CPU, more than fit at once only give a warning.
    configured = EngineConfig(device="cpu", max_sessions=8)
    assert Engine.load(CHECKPOINT, configured).stats().max_sessions == 8


def test_sessions_that_cannot_be_allocated_are_refused_in_one_line() -> None:
    with (
        pytest.raises(ConfigError, match="the memory of 10000000 sessions cannot be allocated"),
        memory.room_for_sessions(10_000_000),
    ):
        torch.empty(10_000_000 << 30)
    with pytest.raises(RuntimeError, match="another"), memory.room_for_sessions(1):
        raise RuntimeError("another fault")


def test_an_engine_of_a_loaded_checkpoint_has_the_default_number() -> None:
    loaded = Engine.load(CHECKPOINT, EngineConfig(device="cpu", max_sessions=1))
    engine = Engine(loaded.checkpoint, loaded._voices, EngineConfig(device="cpu"))
    assert engine.stats().max_sessions == engine.config.max_sessions == 8


def test_no_other_format_is_suggested_for_stored_low_bit_weights() -> None:
    stored = replace(PLAN, quantization="int8", stored=True)
    assert "int4" not in stored.suggestions()


def test_suggestions_are_options_not_in_use_yet() -> None:
    small = replace(PLAN, quantization="int8", kv_dtype="fp8", prompts=0)
    assert small.suggestions() == "a smaller context or quantization int4"
    assert replace(small, quantization="int4").suggestions() == "a smaller context"


def test_a_gpu_with_enough_memory(monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 80 * GIB)
    require_memory(PLAN, CUDA)
    [line] = messages
    assert line.startswith("INFO: memory in GiB:")
    assert "= 28.75 of 80.00 free, 51.25 left" in line


def test_a_cpu_needs_memory_for_the_weights_and_one_full_session(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    cpu_plan = replace(PLAN, workspace=0, spare_slots=0)
    free = 15.8
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(free * GIB))
    require_memory(cpu_plan, CPU)  # 14.5 and 1.25; the rest is allocated later, if at all
    assert [line.split(":")[0] for line in messages] == ["INFO", "WARNING"]
    assert "more than is free" in messages[1]
    with pytest.raises(ConfigError, match=r"2 sessions .* max_sessions 1 would fit"):
        require_memory(cpu_plan, CPU, filled=2)
    free = 15.7
    with pytest.raises(ConfigError, match=r"14.50 \+ one session .* = 15.75 of 15.70 available"):
        require_memory(cpu_plan, CPU)


def test_a_system_that_does_not_report_free_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, messages: list[str]
) -> None:
    monkeypatch.setattr(free_memory, "_OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "none")
    assert available_bytes(CPU) is None
    require_memory(replace(PLAN, weights=10**18), CPU)
    assert "free" not in "".join(messages)
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    1234 kB\n")
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "meminfo")
    assert available_bytes(CPU) == 1234 << 10


def test_an_engine_is_refused_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("pipecat_personaplex.engine.loading.load_checkpoint", read)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    with pytest.raises(ConfigError, match="not even one session fits"):
        Engine.load(CHECKPOINT, EngineConfig(device="cpu"))


def test_an_engine_logs_its_plan(messages: list[str]) -> None:
    Engine.load(CHECKPOINT, EngineConfig(device="cpu", max_sessions=2))
    plans = [line for line in messages if line.startswith("INFO: memory in GiB:")]
    assert len(plans) == 1 and " + 2 sessions x " in plans[0]


def test_the_plan_depends_on_window_and_slots() -> None:
    config = replace(read_config(CHECKPOINT / "config.json"), mimi=MimiConfig())
    whole, part = plan(config), plan(config, window=24, slots=1)
    assert whole.kv_per_slot == part.kv_per_slot * 47 / 24
    shorter = whole.kv_per_slot - part.kv_per_slot
    # Keys and values of two slots more, of one longer slot, and of a longer replay.
    assert whole.total - part.total == 2 * whole.per_slot + 2 * shorter
