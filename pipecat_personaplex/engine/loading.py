"""Loads everything that an engine needs, small files first."""

from __future__ import annotations

from loguru import logger

from pipecat_personaplex.checkpoint.hub import resolve_folder, resolve_model
from pipecat_personaplex.checkpoint.layout import CONFIG_FILE, MODEL_FILES, VOICES_FILE
from pipecat_personaplex.checkpoint.loader import (
    Checkpoint,
    load_checkpoint,
    read_config,
    require_files,
    resolve_quantization,
)
from pipecat_personaplex.checkpoint.progress_bars import loading_bar
from pipecat_personaplex.checkpoint.voices import VoiceLibrary
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.memory_plan import plan_engine, require_memory, resolve_max_sessions
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
    require_files(folder, (*MODEL_FILES, VOICES_FILE))
    # Check the small files and the memory first: reading the weights takes long.
    architecture = read_config(folder / CONFIG_FILE).with_options(config)
    voices = VoiceLibrary.from_archive(folder / VOICES_FILE, architecture)
    resolve_quantization(folder, architecture, config.quantization, target.device)
    config = resolve_max_sessions(architecture, config, target)
    require_memory(plan_engine(architecture, config, target), target.device)
    with loading_bar(progress) as advance:
        checkpoint = load_checkpoint(folder, **target._asdict(), progress=advance)
    return checkpoint, voices, config
