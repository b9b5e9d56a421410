"""A folder in the release's layout whose transformers' weights are low-bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipecat_personaplex.checkpoint.layout import (
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    MODEL_FILES,
    TOKENIZER_FILE,
    VOICES_FILE,
    Entry,
    lm_layout,
    scale_name,
)
from pipecat_personaplex.checkpoint.loader import Progress, depth_steps, read_config, require_files
from pipecat_personaplex.checkpoint.weights import SAFETENSORS_NAMES, FileSource
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.quantization.weights import quantize, storage

_HEADER_MULTIPLE = 8


class _Piece(NamedTuple):
    """One tensor of the file to be, made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Part(NamedTuple):
    """Tensors of the file to be that are made together."""

    pieces: tuple[_Piece, ...]
    make: Callable[[], tuple[Tensor, ...]]


def save_quantized(
    folder: Path,
    output: Path,
    quantization: Quantization,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint's low-bit twin: a folder that loads as the original does with it.

    Takes little more memory than one tensor. Of 16 depth sets the first 8 are kept.

    Args:
        folder: Holds the release's files.
        output: The folder to make; written beside it under another name first, so that it is
            there as a whole or not at all.
        quantization: What to make of the transformers' weights.
        progress: Told after each tensor.

    Raises:
        CheckpointError: A file is missing, cut off, or does not match ``config.json``.
        ConfigError: ``config.json`` cannot be used, or the weights are low-bit already.
        UserError: ``output`` is there already or cannot be made.
        OSError: It cannot be written; there may be no space left.
    """
    require_files(folder, (*MODEL_FILES, VOICES_FILE))
    config = read_config(folder / CONFIG_FILE)
    if config.quantization is not None:
        raise ConfigError(
            f"{folder} holds {config.quantization} weights already; quantize the release it was "
            "made from"
        )
    source = FileSource(folder / MODEL_FILE)
    with torch.device("meta"):
        model = PersonaPlexLM(config.lm)
    layout = lm_layout(model, depth_steps(source, config.lm))
    source.require_all_known(layout)
    parts = list(_parts(model, layout, source, quantization))
    temporary = _claim(output)
    try:
        _write_safetensors(temporary / MODEL_FILE, parts, progress)
        for name in (MIMI_FILE, TOKENIZER_FILE, VOICES_FILE):
            shutil.copyfile(folder / name, temporary / name)
        _write_config(folder / CONFIG_FILE, temporary / CONFIG_FILE, quantization)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _claim(output: Path) -> Path:
    """Make an empty folder beside the one to be."""
    parent = Path(os.path.abspath(output)).parent
    if os.path.lexists(output):
        raise UserError(f"{output} is there already; choose another folder, or remove it first")
    if not parent.is_dir():
        raise UserError(f"{output}: there is no folder {parent}; create it first")
    temporary = parent / f".{os.getpid()}.{output.name}"
    temporary.mkdir()
    return temporary


def _parts(
    model: PersonaPlexLM, layout: list[Entry], source: FileSource, quantization: Quantization
) -> Iterator[_Part]:
    """The file's tensors under the release's names; of stacked ones the first eight sets."""
    seen: set[str] = set()
    for entry in layout:
        if entry.name in seen:
            continue
        seen.add(entry.name)
        if entry.rows is not None:
            height = (entry.rows[1] - entry.rows[0]) * CODEBOOKS
            yield _part(model, entry, (height, *entry.shape[1:]), source, quantization)
        else:
            yield _part(model, entry, entry.shape, source, quantization)


def _part(
    model: PersonaPlexLM,
    entry: Entry,
    shape: tuple[int, ...],
    source: FileSource,
    quantization: Quantization,
) -> _Part:
    owner = model.get_submodule(entry.target.rpartition(".")[0])
    format = owner.format(quantization) if isinstance(owner, Linear) else None

    def read() -> Tensor:
        return source.read(entry.name, entry.shape, (0, shape[0]))

    if format is None:
        kept = _Piece(entry.name, shape, source.dtype(entry.name))
        return _Part((kept,), lambda: (read(),))
    low = storage(format, *shape)
    pieces = (
        _Piece(entry.name, low.weight, low.weight_dtype),
        _Piece(scale_name(entry.name), low.scale, low.scale_dtype),
    )

    def make() -> tuple[Tensor, ...]:
        made = quantize(read(), format)
        return made.weight, made.scale

    return _Part(pieces, make)


def _write_safetensors(path: Path, parts: list[_Part], progress: Progress | None) -> None:
    """Write tensors one after the other; the library's own writer wants all of them at once."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        for piece in part.pieces:
            start = end
            end += torch.Size(piece.shape).numel() * piece.dtype.itemsize
            header[piece.name] = {
                "dtype": SAFETENSORS_NAMES[piece.dtype],
                "shape": list(piece.shape),
                "data_offsets": [start, end],
            }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _HEADER_MULTIPLE)
    done = 0
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for part in parts:
            for piece, tensor in zip(part.pieces, part.make(), strict=True):
                assert (tuple(tensor.shape), tensor.dtype) == (piece.shape, piece.dtype)
                data = tensor.contiguous().flatten().view(torch.uint8).numpy()
                file.write(data.data)
                done += data.nbytes
            if progress is not None:
                progress(done, end)


def _write_config(original: Path, path: Path, quantization: Quantization) -> None:
    values = json.loads(original.read_bytes()) if original.is_file() else {}
    values["lm"] = {**values.get("lm", {}), "dep_q": CODEBOOKS}
    values["quantization"] = quantization
    path.write_text(json.dumps(values, indent=2) + "\n")
