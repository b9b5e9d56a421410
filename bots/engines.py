"""The engine behind a bot: a model in this process, or engine servers elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.remote import RemoteEngine

if TYPE_CHECKING:
    from pipecat_personaplex.engine.engine import Engine


def connect_engine(urls: Sequence[str], api_key: str | None) -> RemoteEngine:
    """Create the client of these engine servers, not yet started; loads neither model nor torch.

    Raises:
        ConfigError: A URL is not valid.
    """
    engine = RemoteEngine(urls, api_key=api_key)
    logger.info("waiting for an engine server: {}", ", ".join(urls))
    return engine


def load_engine(
    model: str, config: EngineConfig, voice: str | None, added: Sequence[tuple[str, Path]]
) -> Engine:
    """Load a model into this process.

    Args:
        model: As ``Engine.load`` takes it.
        config: How the engine runs.
        voice: A voice that the model must have; None for no such check.
        added: Names and files of voices in addition to the model's.

    Raises:
        UserError: The model, the device or a voice cannot be used.
    """
    from pipecat_personaplex.checkpoint.hub import resolve_model
    from pipecat_personaplex.checkpoint.voices import VoiceLibrary
    from pipecat_personaplex.engine.engine import Engine

    model, note = resolve_model(model, config.device)
    if note is not None:
        logger.info(note)
    show_progress = sys.stderr.isatty()
    if voice is not None and voice not in dict(added):
        # Raises for an unknown voice, before gigabytes of weights are loaded.
        VoiceLibrary.of_model(model, progress=show_progress).get(voice)
    engine = Engine.load(model, config, progress=show_progress)
    for name, path in added:
        engine.add_voice(name, path)
    return engine
