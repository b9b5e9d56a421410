"""Computes the memory that an engine needs from the architecture, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
from loguru import logger

from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig, Quantization
from pipecat_personaplex.engine.cuda_graphs import spare_slots
from pipecat_personaplex.engine.free_memory import available_bytes
from pipecat_personaplex.engine.model_bytes import (
    codec_slot_bytes,
    kv_bytes,
    weight_bytes,
    workspace_bytes,
)
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.device import Target, resolve_kv_dtype
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.quantization.fp8 import FP8

_GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of an engine by purpose, in bytes.

    Attributes:
        weights: Weights of the language model.
        codec: Weights of the codec, and the initial state that every slot's codec starts from.
        kv_per_slot: Keys and values of one slot with a full window.
        codec_per_slot: The codec's streaming state of one slot.
        slots: Number of slots for sessions.
        spare_slots: Number of additional slots, which pad batches on CUDA.
        prompts: Upper bound of the prefix cache.
        replay: Keys and values of one replay (see ``engine.replay``), allocated when needed.
        workspace: Allowance for graphs and the device's libraries, independent of the slots.
        workspace_per_slot: Allowance that each slot adds.
        quantization: Planned format of the weights.
        kv_dtype: Planned type of the keys and values.
        stored: Whether the checkpoint's weights are stored in that format, which then cannot be
            changed.
    """

    weights: int
    codec: int
    kv_per_slot: int
    codec_per_slot: int
    slots: int
    spare_slots: int
    prompts: int
    replay: int
    workspace: int
    workspace_per_slot: int
    quantization: Quantization | None
    kv_dtype: str
    stored: bool = False

    @property
    def per_slot(self) -> int:
        """One slot with a full window."""
        return self.kv_per_slot + self.codec_per_slot

    @property
    def fixed(self) -> int:
        """Everything that does not depend on the number of slots."""
        return self.weights + self.codec + self.prompts + self.replay + self.workspace

    @property
    def total(self) -> int:
        """Everything, with every window and the prefix cache full."""
        return self.fixed + self._of_slots(self.slots, self.spare_slots)

    def _of_slots(self, slots: int, spare: int) -> int:
        return (slots + spare) * self.per_slot + slots * self.workspace_per_slot

    def fitting_slots(self, available: int) -> int:
        """Number of slots that fit into ``available`` bytes."""
        room = available - self.fixed
        count = max(0, room // (self.per_slot + self.workspace_per_slot))
        # Small numbers of slots need no spare slot: see ``spare_slots``.
        while count and self._of_slots(count, spare_slots(count) * self.spare_slots) > room:
            count -= 1
        # One session runs also without room for a replay; see ``require_memory``.
        alone = self.fixed - self.replay + self._of_slots(1, 0)
        return count or int(alone <= available)

    def describe(self, available: int | None) -> str:
        """The plan as a sum in GiB, on one line.

        Args:
            available: Free memory of the device in bytes; None if unknown.
        """
        slots = f"{self.slots} sessions" if self.slots > 1 else "1 session"
        if self.spare_slots:
            slots = f"({slots} and {self.spare_slots} spare)"
        parts = [
            f"weights {_gib(self.weights)}",
            f"codec {_gib(self.codec)}",
            f"{slots} x {_gib(self.per_slot)} (KV {_gib(self.kv_per_slot)}, {self.kv_dtype})",
            f"prompts up to {_gib(self.prompts)}",
            f"replay {_gib(self.replay)}",
        ]
        if workspace := self.workspace + self.slots * self.workspace_per_slot:
            parts.append(f"graphs and workspace {_gib(workspace)}")
        text = f"{' + '.join(parts)} = {_gib(self.total)}"
        if available is None:
            return text
        left = available - self.total
        return f"{text} of {_gib(available)} free" + (f", {_gib(left)} left" if left >= 0 else "")

    def as_dict(self) -> dict[str, int | str | None]:
        """The plan as JSON values, with its total."""
        return {**asdict(self), "total": self.total}

    def suggestions(self) -> str:
        """Options that would need less memory and are not in use yet."""
        options = [] if self.kv_dtype == "fp8" else ["kv_dtype fp8"]
        options.append("a smaller context")
        if self.quantization is None:
            options += ["quantization int8", "quantization int4"]
        elif self.quantization != "int4" and not self.stored:
            options.append("quantization int4")
        return f"{', '.join(options[:-1])} or {options[-1]}" if options[1:] else options[0]


def plan_engine(architecture: ModelConfig, config: EngineConfig, target: Target) -> MemoryPlan:
    """Compute the memory of an engine with this configuration.

    Args:
        architecture: The checkpoint's configuration, with the configured context.
        config: The engine's configuration, with a number of sessions.
        target: The resolved device, type and requested format.
    """
    # config.json of a folder with low-bit weights names their format.
    target = target._replace(quantization=target.quantization or architecture.quantization)
    kv_dtype = resolve_kv_dtype(config.kv_dtype, target.dtype, target.device, target.quantization)
    plan = plan_memory(
        architecture,
        **target._asdict(),
        kv_dtype="fp8" if kv_dtype == FP8 else str(kv_dtype).removeprefix("torch."),
        window=architecture.lm.window,
        slots=config.max_sessions,
        prompt_bytes=config.prefix_cache_bytes,
    )
    return replace(plan, stored=architecture.quantization is not None)


def resolve_prefix_cache(
    architecture: ModelConfig, config: EngineConfig, target: Target
) -> EngineConfig:
    """Lower ``prefix_cache_bytes`` to what a CUDA device has room for, and log it.

    The configured number of sessions, or one if none is configured, has precedence.

    Returns:
        The configuration, unchanged if everything fits, or if not even this gives enough room:
        ``require_memory`` then raises the error.
    """
    available = available_bytes(target.device)
    if target.device.type != "cuda" or available is None:
        return config
    least = replace(config, max_sessions=config.max_sessions or 1)
    plan = plan_engine(architecture, least, target)
    room = available - (plan.total - plan.prompts)
    if room < 0 and least.max_sessions == 1:
        room += plan.replay  # one session runs also without room for a replay: ``require_memory``
    if not 0 <= room < plan.prompts:
        return config
    logger.warning(
        "the prefix cache gets {} instead of {}, in GiB, of {} free; callers with other personas "
        "may wait for their prompts",
        _gib(room),
        _gib(plan.prompts),
        _gib(available),
    )
    return replace(config, prefix_cache_bytes=room)


def resolve_max_sessions(
    architecture: ModelConfig, config: EngineConfig, target: Target
) -> EngineConfig:
    """Replace ``max_sessions`` 0 by the number of sessions to run.

    Returns:
        The configuration with ``DEFAULT_MAX_SESSIONS``, or with as many sessions as fit if those
        are fewer, but at least one: if not even one fits, ``require_memory`` raises the error.
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
            plan.describe(available),
            plan.suggestions(),
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
    """Compute the memory of an engine from the architecture; nothing is allocated.

    Args:
        config: The checkpoint's configuration.
        device: Device of the engine.
        dtype: Type of the language model's weights.
        quantization: ``"int8"``, ``"fp8"``, ``"int4"`` or None.
        kv_dtype: ``"bfloat16"``, ``"float32"`` or ``"fp8"``.
        window: Frames of keys and values in one slot.
        slots: Number of sessions at once.
        prompt_bytes: Upper bound of the prefix cache, in bytes.
    """
    lm, mimi = _on_meta(config)
    codec_slot = codec_slot_bytes(mimi, config.mimi)
    workspace, per_slot = workspace_bytes(config.lm, window, device, dtype)
    return MemoryPlan(
        weights=weight_bytes(lm, device, dtype, quantization),
        codec=weight_bytes(mimi, device, torch.float32, None) + codec_slot,
        kv_per_slot=kv_bytes(config.lm, window, kv_dtype),
        codec_per_slot=codec_slot,
        slots=slots,
        spare_slots=spare_slots(slots) if device.type == "cuda" else 0,
        prompts=prompt_bytes,
        replay=kv_bytes(config.lm, window, str(dtype).removeprefix("torch.")),
        workspace=workspace,
        workspace_per_slot=per_slot,
        quantization=quantization,
        kv_dtype=kv_dtype,
    )


@lru_cache(maxsize=4)
def _on_meta(config: ModelConfig) -> tuple[PersonaPlexLM, Mimi]:
    """The models without memory. Several plans of one architecture share them."""
    with torch.device("meta"):
        return PersonaPlexLM(config.lm), Mimi(config.mimi)


def require_memory(plan: MemoryPlan, device: torch.device, filled: int = 1) -> None:
    """Log the plan, and check that it fits into the device's free memory.

    On CUDA all memory is allocated at the start, so the whole plan must fit. On a CPU the pages of
    a ring are allocated when they are first written, as a call grows long: a plan that exceeds
    the free memory is only a risk and gives a warning, as long as ``filled`` full slots fit.

    Args:
        plan: The plan to check.
        device: Device of the engine.
        filled: On a CPU, the number of slots whose windows will be full.

    Raises:
        ConfigError: The plan does not fit.
    """
    available = available_bytes(device)
    logger.info("memory in GiB: {}", plan.describe(available))
    if available is None or plan.total <= available:
        return
    if device.type == "cuda":
        if plan.slots == 1 and plan.total - plan.replay <= available:
            logger.warning(
                "memory in GiB: {}: too little for a replay, so update_prompt may be refused and "
                "the persona forgotten; {} need less",
                plan.describe(available),
                plan.suggestions(),
            )
            return
        raise ConfigError(_refusal(plan, plan.describe(available), plan.fitting_slots(available)))
    weights = plan.weights + plan.codec
    required = weights + filled * plan.per_slot
    if required > available:
        sessions = f"{filled} sessions" if filled > 1 else "one session"
        description = (
            f"weights {_gib(weights)} + {sessions} with a full window "
            f"{_gib(filled * plan.per_slot)} = {_gib(required)} of {_gib(available)} available"
        )
        fitting = max(0, (available - weights) // plan.per_slot)
        raise ConfigError(_refusal(plan, description, fitting))
    logger.warning(
        "memory in GiB: {}: more than is free once all windows and the prefix cache are full; "
        "fewer max_sessions, {} need less",
        plan.describe(available),
        plan.suggestions(),
    )


def require_replay_memory(
    config: LMConfig, frames: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Check that the keys and values of one replay fit into the device's free memory.

    Args:
        config: The language model.
        frames: Positions of the replay.
        dtype: Type of its keys and values.
        device: Device of the engine.

    Raises:
        ConfigError: They do not fit.
    """
    needed = kv_bytes(config, frames, str(dtype).removeprefix("torch."))
    available = available_bytes(device)
    if available is not None and needed > available:
        raise ConfigError(
            f"too little memory to compute a call again, in GiB: keys and values of {frames} "
            f"frames {_gib(needed)} of {_gib(available)} free; fewer max_sessions or a smaller "
            "context leave more"
        )


@contextmanager
def room_for_sessions(count: int) -> Iterator[None]:
    """Allocate the state of so many sessions.

    Raises:
        ConfigError: The device or the system has no memory for it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"the memory of {count} sessions cannot be allocated; fewer max_sessions or a smaller "
            "context need less"
        ) from error


def _refusal(plan: MemoryPlan, description: str, fitting: int) -> str:
    fits = f"max_sessions {fitting} would fit" if fitting else "not even one session fits"
    return f"too little memory, in GiB: {description}; {fits}, and {plan.suggestions()} need less"


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}"
