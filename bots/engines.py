"""The engine behind a bot: a model of its own, or servers elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.remote import RemoteEngine

if TYPE_CHECKING:
    from pipecat_personaplex.engine.engine import Engine


def connect_engine(urls: Sequence[str], api_key: str | None) -> RemoteEngine:
    """The engine of these servers, not yet started; no model is loaded, and no torch.

    Raises:
        ConfigError: A URL cannot be.
    """
    engine = RemoteEngine(urls, api_key=api_key)
    print(f"engine: {', '.join(urls)}; waiting until one answers", file=sys.stderr)
    return engine


def load_engine(
    model: str, config: EngineConfig, voice: str | None, added: Sequence[tuple[str, Path]]
) -> Engine:
    """Load the model that was asked for.

    Args:
        model: As ``Engine.load`` takes it.
        config: How to run.
        voice: One that has to be there.
        added: Names and files of voices besides the model's.

    Raises:
        UserError: The model, the device or a voice cannot be used.
    """
    from pipecat_personaplex.checkpoint.hub import resolve_model
    from pipecat_personaplex.checkpoint.voices import VoiceLibrary
    from pipecat_personaplex.engine.engine import Engine

    model, note = resolve_model(model, config.device)
    if note is not None:
        print(note, file=sys.stderr)
    shown = sys.stderr.isatty()
    if voice is not None and voice not in dict(added):
        VoiceLibrary.of_model(model, progress=shown).get(voice)  # before gigabytes are loaded
    engine = Engine.load(model, config, progress=shown)
    for name, path in added:
        engine.add_voice(name, path)
    return engine
