"""The engine behind a bot: a model of its own, or servers elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.remote import RemoteEngine

if TYPE_CHECKING:
    from pipecat_personaplex.engine.engine import Engine

RELEASE = "nvidia/personaplex-7b-v1"
NOISE = Path(__file__).parents[1] / "tests" / "golden" / "tiny-personaplex"


def connect_engine(urls: Sequence[str], api_key: str | None) -> RemoteEngine:
    """The engine of these servers, not yet started; no model is loaded, and no torch.

    Raises:
        ConfigError: A URL cannot be.
    """
    engine = RemoteEngine(urls, api_key=api_key)
    print(f"engine: {', '.join(urls)}", file=sys.stderr)
    return engine


def load_engine(model: str | None, device: str, max_sessions: int) -> Engine:
    """Load the model that was asked for, or the best one for this machine.

    Raises:
        UserError: The model or the device cannot be used.
    """
    from pipecat_personaplex.engine.engine import Engine

    if model is None:
        model, note = default_model(device)
        print(note, file=sys.stderr)
    config = EngineConfig(device=device, max_sessions=max_sessions)
    return Engine.load(model, config, progress=sys.stderr.isatty())


def default_model(device: str) -> tuple[str, str]:
    """The model for this machine, and a line that says which and why.

    Raises:
        ConfigError: There is none, because the package was installed without its tests.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        reason = "There is no CUDA GPU to run the 7B model on"
    elif not _accessible(RELEASE):
        reason = f"There is no access to {RELEASE}: accept its licence there, then `hf auth login`"
    else:
        return RELEASE, f"model: {RELEASE}"
    if not NOISE.is_dir():
        raise ConfigError(f"{reason}; name a model with --model")
    return str(NOISE), (
        f"{reason}.\n"
        "A tiny random checkpoint stands in for it: it shows that everything works, and what it "
        "says is NOISE, not speech."
    )


def _accessible(repo: str) -> bool:
    if isinstance(try_to_load_from_cache(repo, "model.safetensors"), str):
        return True
    try:
        HfApi().auth_check(repo)
    except (HfHubHTTPError, OSError):
        return False
    return True
