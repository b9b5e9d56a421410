"""The model that a measurement is about: a checkpoint, or random weights of a known size."""

from __future__ import annotations

from typing import NamedTuple

from pipecat_personaplex.architecture import LMConfig, ModelConfig
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.engine.checkpoint import (
    load_checkpoint,
    random_model,
    read_config,
    require_files,
)
from pipecat_personaplex.engine.download import resolve
from pipecat_personaplex.engine.layout import CONFIG_FILE
from pipecat_personaplex.engine.placement import choose_target
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

RANDOM_MODELS = {
    "random-1b": ModelConfig(
        lm=LMConfig(
            dim=2048,
            num_layers=16,
            num_heads=16,
            dep_q=8,
            depformer_dim=512,
            depformer_dim_feedforward=2112,
            depformer_num_heads=8,
        )
    ),
    "random-7b": ModelConfig(lm=LMConfig(dep_q=8)),
}


class Subject(NamedTuple):
    """A model on its device."""

    config: ModelConfig
    lm: PersonaPlexLM
    mimi: Mimi


def read_architecture(model: str) -> ModelConfig:
    """The architecture of what ``load_subject`` would load, without loading it.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
    """
    if model in RANDOM_MODELS:
        return RANDOM_MODELS[model]
    folder = resolve(model, progress=True)
    require_files(folder)
    return read_config(folder / CONFIG_FILE)


def load_subject(model: str, device: str, dtype: str, quantization: Quantization | None) -> Subject:
    """Load what is measured.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        device: As in ``EngineConfig``.
        dtype: As in ``EngineConfig``.
        quantization: As in ``EngineConfig``.
    """
    target = choose_target(device, dtype, quantization)
    if model in RANDOM_MODELS:
        config = RANDOM_MODELS[model]
        return Subject(config, *random_model(config, **target._asdict()))
    checkpoint = load_checkpoint(resolve(model, progress=True), **target._asdict())
    return Subject(checkpoint.config, checkpoint.lm, checkpoint.mimi)
