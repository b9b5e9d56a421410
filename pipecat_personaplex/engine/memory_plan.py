"""What a model takes of a device's memory, reckoned before any of it is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from loguru import logger
from torch import nn

from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig, Quantization
from pipecat_personaplex.engine.cuda_graphs import spare_slots
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import LMConfig, MimiConfig, ModelConfig
from pipecat_personaplex.models.device import Target, resolve_kv_dtype
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.weights import storage

_GIB = 1 << 30
_MEMINFO = Path("/proc/meminfo")

CUDA_WORKSPACE_BYTES = 1 << 30
CUDA_WORKSPACE_BYTES_PER_SLOT = 8 << 20
"""Allowances, not measurements: captured graphs, the libraries' workspaces, activations."""

# fp8 keys and values: a float32 for each position and head, and for keys and values each.
_KV_SCALE_BYTES = 4
_FLOAT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes, in bytes.

    Attributes:
        weights: Of the language model.
        codec: Of the codec, and of the state that every call of it starts from.
        kv_per_slot: Keys and values of a full window.
        codec_per_slot: The codec's streaming state.
        slots: Callers at once.
        spare_slots: Slots that are there besides.
        prompts: Bound of the prefix cache.
        workspace: Allowance for what the device's libraries and graphs take, callers apart.
        workspace_per_slot: What each caller adds to it.
        quantization: Of the weights, as planned.
        kv_dtype: Of keys and values, as planned.
        stored: Whether the weights come in that quantization, which cannot become another.
    """

    weights: int
    codec: int
    kv_per_slot: int
    codec_per_slot: int
    slots: int
    spare_slots: int
    prompts: int
    workspace: int
    workspace_per_slot: int
    quantization: Quantization | None
    kv_dtype: str
    stored: bool = False

    @property
    def per_slot(self) -> int:
        """One caller with a full window."""
        return self.kv_per_slot + self.codec_per_slot

    @property
    def fixed(self) -> int:
        """What is there whoever calls."""
        return self.weights + self.codec + self.prompts + self.workspace

    @property
    def total(self) -> int:
        """Everything, every window full."""
        return self.fixed + self._of_slots(self.slots, self.spare_slots)

    def _of_slots(self, slots: int, spare: int) -> int:
        return (slots + spare) * self.per_slot + slots * self.workspace_per_slot

    def fitting_slots(self, available: int) -> int:
        """Callers for whom so many bytes are enough."""
        room = available - self.fixed
        count = max(0, room // (self.per_slot + self.workspace_per_slot))
        # Few callers need no spare slot.
        while count and self._of_slots(count, spare_slots(count) * self.spare_slots) > room:
            count -= 1
        return count

    def sum(self, available: int | None) -> str:
        """In GiB, for a person; ``available`` is what the device has free, where known."""
        slots = f"{self.slots} sessions" if self.slots > 1 else "1 session"
        if self.spare_slots:
            slots = f"({slots} and {self.spare_slots} spare)"
        parts = [
            f"weights {_gib(self.weights)}",
            f"codec {_gib(self.codec)}",
            f"{slots} x {_gib(self.per_slot)} (KV {_gib(self.kv_per_slot)}, {self.kv_dtype})",
            f"prompts up to {_gib(self.prompts)}",
        ]
        if workspace := self.workspace + self.slots * self.workspace_per_slot:
            parts.append(f"graphs and workspace {_gib(workspace)}")
        text = f"{' + '.join(parts)} = {_gib(self.total)}"
        if available is None:
            return text
        left = available - self.total
        return f"{text} of {_gib(available)} free" + (f", {_gib(left)} left" if left >= 0 else "")

    def as_dict(self) -> dict[str, int | str | None]:
        """For a report."""
        return {**asdict(self), "total": self.total}

    def savings(self) -> str:
        """What would take less, of what is not in use yet."""
        ways = [] if self.kv_dtype == "fp8" else ["kv_dtype fp8"]
        ways.append("a smaller context")
        if self.quantization is None:
            ways += ["quantization int8", "quantization int4"]
        elif self.quantization != "int4" and not self.stored:
            ways.append("quantization int4")
        return f"{', '.join(ways[:-1])} or {ways[-1]}" if ways[1:] else ways[0]


def plan_engine(architecture: ModelConfig, config: EngineConfig, target: Target) -> MemoryPlan:
    """Reckon what an engine that is configured so will take."""
    kept = resolve_kv_dtype(config.kv_dtype, target.dtype, target.device)
    # A folder of low-bit weights says so itself.
    target = target._replace(quantization=target.quantization or architecture.quantization)
    plan = plan_memory(
        architecture,
        **target._asdict(),
        kv_dtype="fp8" if kept == FP8 else str(kept).removeprefix("torch."),
        window=architecture.lm.window,
        slots=config.max_sessions,
        prompt_bytes=config.prefix_cache_bytes,
    )
    return replace(plan, stored=architecture.quantization is not None)


def resolve_max_sessions(
    architecture: ModelConfig, config: EngineConfig, target: Target
) -> EngineConfig:
    """Decide how many callers there are at once, where the configuration leaves it open.

    Returns:
        The configuration with ``DEFAULT_MAX_SESSIONS`` slots, or with as many as fit if those are
        fewer; at least one, which ``require_memory`` then refuses if it does not fit either.
    """
    if config.max_sessions:
        return config
    config = replace(config, max_sessions=DEFAULT_MAX_SESSIONS)
    plan, available = plan_engine(architecture, config, target), available_bytes(target.device)
    if available is None or plan.total <= available:
        return config
    fitting = plan.fitting_slots(available)
    if fitting:
        logger.warning(
            "max_sessions {}, as no more fit: for {}, in GiB, {}; {} make room for more",
            fitting,
            DEFAULT_MAX_SESSIONS,
            plan.sum(available),
            plan.savings(),
        )
    return replace(config, max_sessions=max(1, fitting))


def plan_memory(
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
    kv_dtype: str,
    window: int,
    slots: int,
    prompt_bytes: int,
) -> MemoryPlan:
    """Reckon what an engine will take, from the architecture alone.

    Args:
        config: The checkpoint's.
        device: Where it will run.
        dtype: Of the language model.
        quantization: ``"int8"``, ``"fp8"``, ``"int4"`` or None.
        kv_dtype: ``"bfloat16"``, ``"float32"`` or ``"fp8"``.
        window: Frames a caller's keys and values hold.
        slots: Callers at once.
        prompt_bytes: Bound of the prefix cache.
    """
    with torch.device("meta"):
        lm, mimi = PersonaPlexLM(config.lm), Mimi(config.mimi)
    codec_slot = _codec_slot_bytes(mimi, config.mimi)
    workspace, per_slot = _workspace_bytes(config.lm, window, device, dtype)
    return MemoryPlan(
        weights=_weight_bytes(lm, device, dtype, quantization),
        codec=_weight_bytes(mimi, device, torch.float32, None) + codec_slot,
        kv_per_slot=kv_bytes(config.lm, window, kv_dtype),
        codec_per_slot=codec_slot,
        slots=slots,
        spare_slots=spare_slots(slots) if device.type == "cuda" else 0,
        prompts=prompt_bytes,
        workspace=workspace,
        workspace_per_slot=per_slot,
        quantization=quantization,
        kv_dtype=kv_dtype,
    )


def require_memory(plan: MemoryPlan, device: torch.device, filled: int = 1) -> None:
    """Log the plan, and refuse it where it cannot fit.

    A CUDA device hands out all memory at the start. On a CPU rings take memory only as calls grow
    long, so that more callers than would fit at once are a risk and no mistake.

    Args:
        plan: What is to be loaded.
        device: Where.
        filled: On a CPU, windows that are sure to be full.

    Raises:
        ConfigError: It does not fit.
    """
    available = available_bytes(device)
    logger.info("memory in GiB: {}", plan.sum(available))
    if available is None or plan.total <= available:
        return
    if device.type == "cuda":
        raise ConfigError(_refusal(plan, plan.sum(available), plan.fitting_slots(available)))
    weights = plan.weights + plan.codec
    least = weights + filled * plan.per_slot
    if least > available:
        what = f"{filled} sessions" if filled > 1 else "one session"
        least_sum = (
            f"weights {_gib(weights)} + {what} with a full window "
            f"{_gib(filled * plan.per_slot)} = {_gib(least)} of {_gib(available)} available"
        )
        fitting = max(0, (available - weights) // plan.per_slot)
        raise ConfigError(_refusal(plan, least_sum, fitting))
    logger.warning(
        "memory in GiB: {}: more than there is, should all windows and the prompts' cache fill "
        "up; fewer max_sessions, {} take less",
        plan.sum(available),
        plan.savings(),
    )


def available_bytes(device: torch.device) -> int | None:
    """Memory that a device has for us; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Blocks that torch keeps for this process are free to it, though not to others.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def kv_bytes(config: LMConfig, window: int, kv_dtype: str) -> int:
    """Of one caller's rings of the temporal transformer, all layers."""
    head_dim = config.dim // config.num_heads
    head = head_dim + _KV_SCALE_BYTES if kv_dtype == "fp8" else head_dim * _FLOAT_BYTES[kv_dtype]
    return 2 * config.num_layers * window * config.num_heads * head


def _workspace_bytes(
    config: LMConfig, window: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, int]:
    """On CUDA, beside what is kept, once and for each caller.

    The allowances, the prompt that is being computed, and, without Triton, a layer's rings, which
    PyTorch's attention gathers.
    """
    if device.type != "cuda":
        return 0, 0
    prompt = kv_bytes(config, window, str(dtype).removeprefix("torch."))
    gathered = 0 if find_spec("triton") else prompt // config.num_layers
    return CUDA_WORKSPACE_BYTES + prompt, CUDA_WORKSPACE_BYTES_PER_SLOT + gathered


def _codec_slot_bytes(mimi: Mimi, config: MimiConfig) -> int:
    """Convolutions' state, and the rings of encoder and decoder, in float32."""
    rings = 2 * 2 * config.num_layers * config.window * config.dimension
    return mimi.new_state(1).nbytes + rings * _FLOAT_BYTES["float32"]


def _weight_bytes(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
) -> int:
    """Of a model on the meta device, as it will be kept."""
    total = sum(buffer.nbytes for buffer in model.buffers())
    for owner in model.modules():
        for parameter in owner.parameters(recurse=False):
            if isinstance(owner, Linear) and quantization is not None:
                total += _linear_bytes(owner, device, dtype, quantization)
            else:
                total += parameter.numel() * dtype.itemsize
    return total


def _linear_bytes(
    linear: Linear, device: torch.device, dtype: torch.dtype, quantization: Quantization
) -> int:
    """Of one layer of a quantised model; ``models.linear`` decides how it is kept."""
    rows, columns = linear.weight.shape
    kept = linear.format(quantization)
    if kept is None:
        if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            dtype = torch.bfloat16
        return rows * columns * dtype.itemsize
    low = storage(kept, rows, columns)
    scales = math.prod(low.scale) * low.scale_dtype.itemsize
    if device.type == "cpu" and kept == "int4":
        scales *= 2  # PyTorch's layout has a zero beside each
    return math.prod(low.weight) * low.weight_dtype.itemsize + scales


def _refusal(plan: MemoryPlan, reckoned: str, fitting: int) -> str:
    fits = f"max_sessions {fitting} would fit" if fitting else "not even one session fits"
    return f"too little memory, in GiB: {reckoned}; {fits}, and {plan.savings()} take less"


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}"
