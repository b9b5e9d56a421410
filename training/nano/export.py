"""Writes training states as a checkpoint folder in the layout of NVIDIA's release."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipecat_personaplex.checkpoint.file_names import (
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    VOICES_FILE,
)
from pipecat_personaplex.checkpoint.layout import Entry, lm_layout, mimi_layout
from pipecat_personaplex.constants import CODEBOOKS, SAMPLE_RATE
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.clips import voice_sample
from training.nano.voices import AGENT_VOICES

TEXT_HEAD = "text_linear.weight"
TEXT_SHARPNESS = 2.0
"""Factor on the text's logits in the checkpoint, so that the usual temperature of 0.7 acts as 0.35.

A small model leaves more probability to wrong words than a large one.
"""


def release_tensors(model: nn.Module, layout: Sequence[Entry]) -> dict[str, Tensor]:
    """A model's parameters with the names and shapes of a checkpoint file.

    Applies the engine's layout, which maps file tensors to parameters, in reverse.
    """
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for entry in layout:
        value = parameters[entry.target].detach().cpu()
        if entry.axes is not None:
            permuted = tuple(entry.shape[axis] for axis in entry.axes)
            value = value.reshape(permuted).permute(_inverse(entry.axes))
        elif entry.usage is not None:
            value = value[entry.into]
            tensors[entry.usage] = torch.ones(entry.shape[0])
        elif value.ndim == len(entry.shape) and len(value) > entry.shape[0]:
            # One table here, several tensors in the file.
            value = value[entry.into : entry.into + entry.shape[0]]
        if entry.rows is not None:
            whole = tensors.setdefault(entry.name, torch.empty(entry.shape, dtype=value.dtype))
            whole[slice(*entry.rows)] = value
        else:
            tensors[entry.name] = value.reshape(entry.shape).contiguous().clone()
    return tensors


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def config_json(config: ModelConfig) -> dict[str, object]:
    """The content of ``config.json``: what differs from the 7B."""
    mimi = dataclasses.asdict(config.mimi)
    quantizer = {"dimension": mimi.pop("codebook_dim"), "bins": mimi.pop("bins")}
    transformer = {
        key: mimi.pop(key)
        for key in ("num_heads", "num_layers", "dim_feedforward", "context", "max_period")
    }
    return {
        "model_type": "personaplex",
        "lm": dataclasses.asdict(config.lm),
        "mimi": {"seanet": mimi, "transformer": transformer, "quantizer": quantizer},
        "silence_codes": list(config.silence_codes),
        "sine_codes": list(config.sine_codes),
        "dc_blocker": config.dc_blocker,
    }


def write_models(
    folder: Path, config: ModelConfig, lm: PersonaPlexLM, mimi: Mimi, tokenizer: Path
) -> None:
    """Write all files of a checkpoint except the voices, with ``TEXT_SHARPNESS``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = release_tensors(lm, lm_layout(lm, CODEBOOKS))
    tensors[TEXT_HEAD] = tensors[TEXT_HEAD] * TEXT_SHARPNESS
    save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, folder / MODEL_FILE)
    save_file(release_tensors(mimi, mimi_layout(mimi)), folder / MIMI_FILE)
    shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config_json(config), indent=1) + "\n")


def write_voices(folder: Path) -> None:
    """Add the agent's voices to a checkpoint, encoded by ``personaplex voices encode``."""
    archive = folder / VOICES_FILE
    with tempfile.TemporaryDirectory() as scratch:
        # The command loads the checkpoint, which must have an archive of voices, even if empty.
        with tarfile.open(archive, "w:gz"):
            pass
        voices = Path(scratch) / "voices"
        voices.mkdir()
        for name in AGENT_VOICES:
            recording = Path(scratch) / f"{name}.wav"
            soundfile.write(recording, voice_sample(name, 0), SAMPLE_RATE, subtype="FLOAT")
            subprocess.run(
                [
                    *(sys.executable, "-m", "pipecat_personaplex.cli", "voices", "encode"),
                    *(str(recording), "--model", str(folder), "--device", "cpu"),
                    *("-o", str(voices / f"{name}.pt")),
                ],
                check=True,
            )
        with tarfile.open(archive, "w:gz") as packed:
            for path in sorted(voices.iterdir()):
                packed.add(path, f"voices/{path.name}")
