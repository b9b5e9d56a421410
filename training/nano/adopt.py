"""Training states from a finished checkpoint, so that a run goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipecat_personaplex.checkpoint.layout import (
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Entry,
    lm_layout,
    mimi_layout,
)
from pipecat_personaplex.checkpoint.loader import read_config
from pipecat_personaplex.checkpoint.weights import FileSource
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.codec import new_codec
from training.nano.parallel_lm import new_lm
from training.nano.progress import save_state


@torch.no_grad()
def fill(model: nn.Module, layout: Sequence[Entry], path: Path) -> None:
    """Copy a file's tensors into a model that is already in memory, to be trained on."""
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
    """The codec of a checkpoint, with its weights as training has them."""
    mimi = new_codec(read_config(checkpoint / CONFIG_FILE).mimi)
    fill(mimi, mimi_layout(mimi), checkpoint / MIMI_FILE)
    mimi.reset_constants(torch.device("cpu"))
    return mimi


def adopt(checkpoint: Path, folder: Path) -> None:
    """Write the states of a codec and a language model that have a checkpoint's weights.

    The tokenizer comes along. What training alone needs (heads, optimizers) starts anew.
    """
    config = read_config(checkpoint / CONFIG_FILE)
    mimi = finished_codec(checkpoint)
    lm = new_lm(config.lm)
    fill(lm, lm_layout(lm, config.lm.dep_q), checkpoint / MODEL_FILE)
    for name, model in (("codec", mimi), ("lm", lm)):
        path = folder / f"{name}.pt"
        if path.exists():
            raise FileExistsError(f"{path} is there; adopt into a folder without states")
        prefix = "mimi" if model is mimi else "lm"
        save_state(path, {"parts": {f"{prefix}.{n}": t for n, t in model.state_dict().items()}})
    shutil.copyfile(checkpoint / TOKENIZER_FILE, folder / "tokenizer.model")
