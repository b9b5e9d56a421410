"""Creates training states from a finished checkpoint, so that training continues from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.file_names import (
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
)
from pipecat_personaplex.checkpoint.layout import Entry, lm_layout, mimi_layout
from pipecat_personaplex.checkpoint.weights import FileSource
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.codec import new_codec
from training.nano.copying import insert_copying_layer
from training.nano.export import TEXT_HEAD, TEXT_SHARPNESS
from training.nano.lm import LM_CONFIG
from training.nano.parallel_lm import new_lm
from training.nano.progress import save_state


@torch.no_grad()
def fill(model: nn.Module, layout: Sequence[Entry], path: Path) -> None:
    """Copy the tensors of a checkpoint file into a model that is to be trained."""
    source = FileSource(path)
    for entry in layout:
        part = source.read(entry.name, entry.shape, entry.rows).float()
        if entry.usage is not None:
            part = part / source.read(entry.usage, entry.shape[:1], None).float()[:, None]
        if entry.axes is not None:
            part = part.permute(entry.axes)
        parameter = model.get_parameter(entry.target)
        part = part.reshape(-1, *parameter.shape[1:])
        parameter[entry.into : entry.into + len(part)] = part


def finished_codec(checkpoint: Path) -> Mimi:
    """Load the codec of a checkpoint, unpacked into the modules that training uses."""
    mimi = new_codec(read_config(checkpoint / CONFIG_FILE).mimi)
    fill(mimi, mimi_layout(mimi), checkpoint / MIMI_FILE)
    mimi.reset_constants(torch.device("cpu"))
    return mimi


def adopt(checkpoint: Path, folder: Path) -> None:
    """Write training states of codec and language model with the weights of a checkpoint.

    A language model that has a layer less than the recipe's gets the copying layer. Also copies the
    tokenizer. Heads and optimizers, which a checkpoint does not have, start new.

    Raises:
        FileExistsError: The folder has a training state already.
    """
    config = read_config(checkpoint / CONFIG_FILE)
    mimi = finished_codec(checkpoint)
    lm = new_lm(config.lm)
    fill(lm, lm_layout(lm, config.lm.dep_q), checkpoint / MODEL_FILE)
    lm.get_parameter(TEXT_HEAD).data /= TEXT_SHARPNESS
    states = {
        "codec": {f"mimi.{name}": part for name, part in mimi.state_dict().items()},
        "lm": {f"lm.{name}": part for name, part in lm.state_dict().items()},
    }
    if config.lm.num_layers == LM_CONFIG.num_layers - 1:
        states["lm"] = insert_copying_layer(states["lm"], LM_CONFIG)
    for name, parts in states.items():
        path = folder / f"{name}.pt"
        if path.exists():
            raise FileExistsError(f"{path} exists; use a folder without training states")
        save_state(path, {"parts": parts})
    shutil.copyfile(checkpoint / TOKENIZER_FILE, folder / "tokenizer.model")
