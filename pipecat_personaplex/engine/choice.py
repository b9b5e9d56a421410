"""Which model a machine runs where nobody says."""

from __future__ import annotations

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.engine.download import NANO, explain
from pipecat_personaplex.engine.layout import MODEL_FILE

RELEASE = "nvidia/personaplex-7b-v1"


def choose_model(model: str, device: str) -> tuple[str, str | None]:
    """Settle what ``auto`` means on this machine.

    Args:
        model: What somebody asked for.
        device: As in ``EngineConfig``.

    Returns:
        The model, and, where it was chosen here, a line for a person that says which and why.
    """
    if model != AUTO_MODEL:
        return model, None
    reason = _why_not_the_release(device)
    if reason is None:
        return RELEASE, f"model: {RELEASE}"
    return NANO, (
        f"model: nano, a small demonstration ({reason}); it takes a restaurant's orders or is a "
        "teacher, and knows no more than it was trained on"
    )


def _why_not_the_release(device: str) -> str | None:
    import torch

    if device == "cpu":
        return "the 7B model is for a GPU, and the device is to be the CPU"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU for the 7B model"
    if isinstance(try_to_load_from_cache(RELEASE, MODEL_FILE), str):
        return None
    try:
        HfApi().auth_check(RELEASE)
    except HfHubHTTPError as error:
        return explain(RELEASE, error)
    except Exception:  # of its HTTP library, which differs between the versions of huggingface_hub
        return (
            f"the Hub cannot be reached for {RELEASE}, which is not in its cache; check the "
            "network and HF_HUB_OFFLINE"
        )
    return None
