"""Which model a machine runs where nobody says."""

from __future__ import annotations

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from pipecat_personaplex.engine.download import NANO
from pipecat_personaplex.engine.layout import MODEL_FILE

RELEASE = "nvidia/personaplex-7b-v1"


def choose_model(device: str) -> tuple[str, str]:
    """The best model for this machine.

    Args:
        device: As in ``EngineConfig``.

    Returns:
        What ``Engine.load`` takes, and a line for a person that says which and why.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        reason = "there is no CUDA GPU for the 7B model"
    elif not _accessible(RELEASE):
        reason = f"there is no access to {RELEASE}: accept its licence there, then `hf auth login`"
    else:
        return RELEASE, f"model: {RELEASE}"
    return NANO, (
        f"model: nano, a small demonstration ({reason}); it takes a restaurant's orders or is a "
        "teacher, and knows no more than it was trained on"
    )


def _accessible(repo: str) -> bool:
    if isinstance(try_to_load_from_cache(repo, MODEL_FILE), str):
        return True
    try:
        HfApi().auth_check(repo)
    except (HfHubHTTPError, OSError):
        return False
    return True
