"""The model that is measured: a checkpoint, or random weights of a known size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.checkpoint.loader import (
    load_checkpoint,
    random_model,
)
from pipecat_personaplex.config import EngineConfig, Quantization
from pipecat_personaplex.engine.weight_format import resolve_quantization
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.device import cpu_threads, resolve_kv_dtype, resolve_target
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
"""Architectures that are measured with random weights, by the name that ``--model`` takes."""


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, configured as an engine would run it.

    Attributes:
        config: The architecture, with the requested context.
        lm: The language model.
        mimi: The codec.
        device: The device of both.
        kv_dtype: Data type of the stored keys and values.
        quantization: Format of the transformers' weights; None is floating point.
        cuda_graphs: As in ``EngineConfig``.
    """

    config: ModelConfig
    lm: PersonaPlexLM
    mimi: Mimi
    device: torch.device
    kv_dtype: torch.dtype
    quantization: Quantization | None
    cuda_graphs: bool

    @property
    def window(self) -> int:
        """Frames that the KV rings of one session hold."""
        return self.config.lm.window


def read_architecture(model: str) -> ModelConfig:
    """Return the architecture that ``load_model`` would load, without loading weights.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.

    Raises:
        CheckpointError: A file of the checkpoint is missing.
        ConfigError: ``config.json`` is not valid.
    """
    if model in RANDOM_MODELS:
        return RANDOM_MODELS[model]
    return read_config(CheckpointFiles.of(resolve_folder(model, progress=True)).config)


def load_model(model: str, engine: EngineConfig) -> LoadedModel:
    """Load a model and set the number of CPU threads that an engine would use.

    Args:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        engine: Device, precisions, context and threads.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        ConfigError: The device does not support the configuration.
    """
    target = resolve_target(engine.device, engine.dtype, engine.quantization)
    if engine.quantization == "auto":
        architecture = read_architecture(model).with_options(engine)
        target = resolve_quantization(architecture, engine, target)
    if model in RANDOM_MODELS:
        if engine.adapter:
            raise ConfigError(f"{model} has random weights, which take no adapter")
        config = RANDOM_MODELS[model]
        lm, mimi = random_model(config, **target._asdict())
    else:
        adapter = find_adapter(engine.adapter, progress=True) if engine.adapter else None
        folder = resolve_folder(model, progress=True)
        checkpoint = load_checkpoint(folder, **target._asdict(), adapter=adapter)
        config, lm, mimi = checkpoint.config, checkpoint.lm, checkpoint.mimi
    if target.device.type == "cpu":
        torch.set_num_threads(cpu_threads(engine.cpu_threads, lm))
    quantization = target.quantization or config.quantization
    return LoadedModel(
        config=config.with_options(engine),
        lm=lm,
        mimi=mimi,
        device=target.device,
        kv_dtype=resolve_kv_dtype(engine.kv_dtype, lm.dtype, target.device, quantization),
        quantization=quantization,
        cuda_graphs=engine.cuda_graphs,
    )
