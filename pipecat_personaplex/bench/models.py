"""The model that a measurement is about: a checkpoint, or random weights of a known size."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.checkpoint.layout import CONFIG_FILE
from pipecat_personaplex.checkpoint.loader import (
    load_checkpoint,
    random_model,
    read_config,
    require_files,
)
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.device import cpu_threads, resolve_target
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
    folder = resolve_folder(model, progress=True)
    require_files(folder)
    return read_config(folder / CONFIG_FILE)


def load_subject(model: str, engine: EngineConfig) -> Subject:
    """Load what is measured, and give it as many threads as an engine would.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        engine: How it runs.
    """
    target = resolve_target(engine.device, engine.dtype, engine.quantization)
    if model in RANDOM_MODELS:
        config = RANDOM_MODELS[model]
        subject = Subject(config, *random_model(config, **target._asdict()))
    else:
        checkpoint = load_checkpoint(resolve_folder(model, progress=True), **target._asdict())
        subject = Subject(checkpoint.config, checkpoint.lm, checkpoint.mimi)
    if target.device.type == "cpu":
        torch.set_num_threads(cpu_threads(engine.cpu_threads, subject.lm))
    return subject
