"""Chooses the format of the weights by the device's free memory, for ``quantization="auto"``."""

from __future__ import annotations

from dataclasses import replace

from loguru import logger

from pipecat_personaplex.config import EngineConfig, Quantization
from pipecat_personaplex.engine.free_memory import available_bytes
from pipecat_personaplex.engine.memory_plan import MemoryPlan, plan_engine
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.device import Target

_FORMATS: tuple[Quantization | None, ...] = (None, "int8", "int4")
"""From the most precise to the smallest."""
_GIB = 1 << 30
LEAST_PREFIX_BYTES = 256 << 20
"""Prefix cache with which a format still counts as fitting: one prompt of the 7B, or two."""

INT4_WARNING = (
    "int4 weights change what the model predicts: on nano the logits are off by 8 % of their "
    "spread, with int8 by 1 %; personaplex drift --quantization int4 measures it for any model"
)


def resolve_quantization(architecture: ModelConfig, config: EngineConfig, target: Target) -> Target:
    """Replace quantization ``"auto"`` by the most precise format that fits, and log the reason.

    A format fits if the configured number of sessions, or one if none is configured, has room
    beside everything else, with full windows: on CUDA all of the plan with a small prefix cache,
    on a CPU the weights and one session. Weights that are stored in a low-bit format stay in it.

    Args:
        architecture: The checkpoint's configuration, with the configured context.
        config: The engine's configuration.
        target: The resolved device and type.

    Returns:
        The target with the format; None is ``dtype``, or the format of the checkpoint.
    """
    if config.quantization != "auto":
        return target._replace(quantization=config.quantization)
    target = target._replace(quantization=None)
    available = available_bytes(target.device)
    if architecture.quantization is not None or available is None:
        return target
    one = replace(config, max_sessions=config.max_sessions or 1)
    plain = plan_engine(architecture, one, target)
    for format in _FORMATS:
        chosen = target._replace(quantization=format)
        plan = plain if format is None else plan_engine(architecture, one, chosen)
        if _needed(plan, target) <= available:
            break
    if format is None:
        return target
    logger.warning(
        "weights are stored as {} because memory is short (in GiB): {} needs {:.2f} of {:.2f} "
        "free, {} needs {:.2f}; to decide yourself, set the quantization, or none with a smaller "
        "context",
        format,
        str(target.dtype).removeprefix("torch."),
        _needed(plain, target) / _GIB,
        available / _GIB,
        format,
        _needed(plan, target) / _GIB,
    )
    return chosen


def _needed(plan: MemoryPlan, target: Target) -> int:
    """Bytes without which an engine of this plan does not start, or forgets its persona."""
    if target.device.type == "cuda":
        return plan.total - plan.prompts + min(plan.prompts, LEAST_PREFIX_BYTES)
    return plan.weights + plan.codec + plan.per_slot
