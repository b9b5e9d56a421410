"""Loads everything that an engine needs, small files first."""

from __future__ import annotations

from loguru import logger

from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.hub import resolve_folder, resolve_model
from pipecat_personaplex.checkpoint.loader import (
    Checkpoint,
    load_checkpoint,
    resolve_stored_format,
)
from pipecat_personaplex.checkpoint.progress_bars import loading_bar
from pipecat_personaplex.checkpoint.voices import VoiceLibrary
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.memory_plan import (
    plan_engine,
    require_memory,
    resolve_max_sessions,
    resolve_prefix_cache,
)
from pipecat_personaplex.engine.weight_format import INT4_WARNING, resolve_quantization
from pipecat_personaplex.models.device import (
    resolve_kv_dtype,
    resolve_target,
)


def load_parts(
    model: str, config: EngineConfig, *, progress: bool
) -> tuple[Checkpoint, VoiceLibrary, EngineConfig]:
    """Load a checkpoint and its voices, and decide the number of sessions.

    Arguments and errors are those of ``Engine.load``.

    Returns:
        The checkpoint, its voices, and the configuration with the number of sessions.
    """
    target = resolve_target(config.device, config.dtype, config.quantization)
    resolve_kv_dtype(config.kv_dtype, target.dtype, target.device)
    resolved, note = resolve_model(model, config.device)
    if note is not None:
        logger.info(note)
    folder = resolve_folder(resolved, progress=progress)
    files = CheckpointFiles.of(folder)
    # Check the small files and the memory first: reading the weights takes long.
    architecture = read_config(files.config).with_options(config)
    voices = VoiceLibrary.of_folder(folder, architecture)
    adapter = find_adapter(config.adapter, progress=progress) if config.adapter else None
    target = resolve_quantization(architecture, config, target)
    format = resolve_stored_format(folder, architecture, target.quantization, target.device)
    if format == "int4":
        logger.warning(INT4_WARNING)
    config = resolve_prefix_cache(architecture, config, target)
    config = resolve_max_sessions(architecture, config, target)
    require_memory(plan_engine(architecture, config, target), target.device)
    with loading_bar(progress) as advance:
        checkpoint = load_checkpoint(folder, **target._asdict(), adapter=adapter, progress=advance)
    return checkpoint, voices, config
