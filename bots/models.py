"""The engine behind a bot: a model of its own, or servers elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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


def load_engine(model: str, config: EngineConfig) -> Engine:
    """Load the model that was asked for; ``auto`` is the best one for this machine.

    Raises:
        UserError: The model or the device cannot be used.
    """
    from pipecat_personaplex.engine.choice import choose_model
    from pipecat_personaplex.engine.engine import Engine

    model, note = choose_model(model, config.device)
    if note is not None:
        print(note, file=sys.stderr)
    return Engine.load(model, config, progress=sys.stderr.isatty())
