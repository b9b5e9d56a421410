"""Writes a quantised checkpoint: a folder in the release's layout with low-bit weights."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipecat_personaplex.checkpoint.adapter import AdaptedSource, adapted
from pipecat_personaplex.checkpoint.adapter_file import AdapterFile
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles, require_voices
from pipecat_personaplex.checkpoint.config_file import read_config, read_sections
from pipecat_personaplex.checkpoint.file_names import (
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    VOICES_FILE,
)
from pipecat_personaplex.checkpoint.layout import Entry, is_split, lm_layout, scale_name
from pipecat_personaplex.checkpoint.loader import depth_steps
from pipecat_personaplex.checkpoint.progress_bars import Progress
from pipecat_personaplex.checkpoint.weights import SAFETENSORS_NAMES, FileSource
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.quantization.weights import quantize, storage

_HEADER_MULTIPLE = 8


class _TensorSpec(NamedTuple):
    """Name, shape and type of one tensor in the new file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Part(NamedTuple):
    """Tensors of the new file that come from one tensor of the source file.

    Attributes:
        specs: What the header says of them.
        compute: Reads the source tensor and computes the new ones; called when they are written.
    """

    specs: tuple[_TensorSpec, ...]
    compute: Callable[[], tuple[Tensor, ...]]


def save_quantized(
    folder: Path,
    output: Path,
    quantization: Quantization,
    progress: Progress | None = None,
    adapter: AdapterFile | None = None,
) -> None:
    """Write a copy of a checkpoint with low-bit weights.

    The copy loads to the same weights as the original loaded with this ``quantization``. Peak
    memory is little more than one tensor. Of the weights of 16 depth steps the first 8 are
    written. The copy has the release's file names, and an adapter is merged into it.

    Args:
        folder: Folder with the release's files.
        output: The folder to create. The files are written to a temporary folder next to it,
            which is then renamed: ``output`` exists either completely or not at all.
        quantization: Format of the transformers' weights.
        progress: Called after each tensor with (bytes written, bytes in total).
        adapter: A LoRA adapter to merge, in place of one that ``config.json`` names.

    Raises:
        CheckpointError: A file is missing, cut off, or does not match ``config.json``.
        ConfigError: ``config.json`` is invalid, or the weights are low-bit already.
        UserError: ``output`` exists, or its parent folder does not.
        OSError: A file cannot be written, for example because the disk is full.
    """
    files = CheckpointFiles.of(folder)
    require_voices(folder)
    config = read_config(files.config)
    if config.quantization is not None:
        raise ConfigError(
            f"{folder} holds {config.quantization} weights already; quantize the release it was "
            "made from"
        )
    file = FileSource(files.model)
    source = adapted(file, adapter or files.required_adapter())
    with torch.device("meta"):
        model = PersonaPlexLM(config.lm)
    layout = lm_layout(model, depth_steps(file, config.lm), split=is_split(file.names))
    source.require_all_known(layout)
    parts = list(_parts(model, layout, source, quantization))
    check_new_folder(output)
    output = Path(os.path.abspath(output))
    temporary = output.with_name(f".{secrets.token_hex(4)}.{output.name}")  # on the same disk
    try:
        temporary.mkdir()
        _write_safetensors(temporary / MODEL_FILE, parts, progress)
        shutil.copyfile(files.mimi, temporary / MIMI_FILE)
        shutil.copyfile(files.tokenizer, temporary / TOKENIZER_FILE)
        if files.voices is not None:
            shutil.copyfile(files.voices, temporary / VOICES_FILE)
        _write_config(files.config, temporary / CONFIG_FILE, quantization)
        temporary.rename(output)
    except OSError as error:
        error.filename = str(output)  # else it names no file, or the one that was copied
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(output: Path) -> None:
    """Check that a folder can be created.

    Raises:
        UserError: It is there already, or its parent is not or cannot be written to.
    """
    parent = Path(os.path.abspath(output)).parent
    if os.path.lexists(output):
        raise UserError(f"{output} is there already; choose another folder, or remove it first")
    if not parent.is_dir():
        raise UserError(f"{output}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{output}: you may not write to {parent}; choose another folder")


def _parts(
    model: PersonaPlexLM,
    layout: list[Entry],
    source: FileSource | AdaptedSource,
    quantization: Quantization,
) -> Iterator[_Part]:
    """Every tensor of the new file, under the release's names, in the order of the layout."""
    seen: set[str] = set()
    for entry in layout:
        if entry.name in seen:
            continue
        seen.add(entry.name)
        if entry.rows is not None:  # stacked over depth steps: write the first eight
            height = (entry.rows[1] - entry.rows[0]) * CODEBOOKS
            yield _part(model, entry, (height, *entry.shape[1:]), source, quantization)
        else:
            yield _part(model, entry, entry.shape, source, quantization)


def _part(
    model: PersonaPlexLM,
    entry: Entry,
    shape: tuple[int, ...],
    source: FileSource | AdaptedSource,
    quantization: Quantization,
) -> _Part:
    owner = model.get_submodule(entry.target.rpartition(".")[0])
    format = owner.format(quantization) if isinstance(owner, Linear) else None

    def read() -> Tensor:
        return source.read(entry.name, entry.shape, (0, shape[0]))

    if format is None:
        spec = _TensorSpec(entry.name, shape, source.dtype(entry.name))
        return _Part((spec,), lambda: (read(),))
    stored = storage(format, *shape)
    specs = (
        _TensorSpec(entry.name, stored.weight, stored.weight_dtype),
        _TensorSpec(scale_name(entry.name), stored.scale, stored.scale_dtype),
    )

    def compute() -> tuple[Tensor, ...]:
        low_bit = quantize(read(), format)
        return low_bit.weight, low_bit.scale

    return _Part(specs, compute)


def _write_safetensors(path: Path, parts: list[_Part], progress: Progress | None) -> None:
    """Write a safetensors file one tensor at a time.

    The library's own writer needs all tensors in memory at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        for spec in part.specs:
            start = end
            end += torch.Size(spec.shape).numel() * spec.dtype.itemsize
            header[spec.name] = {
                "dtype": SAFETENSORS_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, end],
            }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _HEADER_MULTIPLE)
    done = 0
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for part in parts:
            for spec, tensor in zip(part.specs, part.compute(), strict=True):
                assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype)
                data = tensor.contiguous().flatten().view(torch.uint8).numpy()
                file.write(data.data)
                done += data.nbytes
            if progress is not None:
                progress(done, end)


def _write_config(original: Path, path: Path, quantization: Quantization) -> None:
    """Copy a ``config.json``, if any, with the format and the number of depth steps."""
    values = read_sections(original)
    values["lm"] = {**values.get("lm", {}), "dep_q": CODEBOOKS}
    values["quantization"] = quantization
    path.write_text(json.dumps(values, indent=2) + "\n")
