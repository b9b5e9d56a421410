"""Loads a checkpoint: the language model, the codec and the tokenizer of one folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from loguru import logger

from pipecat_personaplex.checkpoint.adapter import adapted
from pipecat_personaplex.checkpoint.adapter_file import AdapterFile
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
from pipecat_personaplex.checkpoint.config_file import read_config, read_small
from pipecat_personaplex.checkpoint.layout import (
    DEPTH_STACK,
    SPLIT_DEPTH,
    is_split,
    lm_layout,
    mimi_layout,
)
from pipecat_personaplex.checkpoint.progress_bars import Progress
from pipecat_personaplex.checkpoint.weights import FileSource, RandomSource, Source, assemble
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import CheckpointError, ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.device import Target, require_runnable
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

_MAX_TOKENIZER_BYTES = 32 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        config: The architecture. ``lm.dep_q`` is the number of depth steps in the file.
        lm: The language model.
        mimi: The codec, float32.
        tokenizer: A ``sentencepiece.SentencePieceProcessor``.
        quantization: Format of the transformers' weights in memory; None is floating point.
    """

    config: ModelConfig
    lm: PersonaPlexLM
    mimi: Mimi
    tokenizer: Any
    quantization: Quantization | None


def load_checkpoint(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    adapter: AdapterFile | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load the language model, the codec and the tokenizer.

    Peak memory is the loaded model and one tensor. Of a file with the weights of 16 depth steps
    the first 8, the agent's, are read. An adapter is merged tensor by tensor, in float32, before a
    weight is quantised.

    Args:
        folder: Folder with the release's files. Without ``config.json`` it is read as the 7B.
        device: Device of the models.
        dtype: Type of the language model's weights.
        quantization: As in ``EngineConfig``.
        adapter: A LoRA adapter to merge, in place of one that ``config.json`` names.
        progress: Called after each tensor with (weights loaded, weights in total).

    Returns:
        The checkpoint, both models in eval mode and without gradients.

    Raises:
        CheckpointError: A file is missing, cut off, or does not match ``config.json``, or the
            adapter does not belong to the checkpoint.
        ConfigError: ``config.json`` is invalid, or its quantization is not the requested one.
    """
    files = CheckpointFiles.of(folder)
    config = read_config(files.config)
    quantization = resolve_stored_format(folder, config, quantization, device)
    tokenizer = _read_tokenizer(files.tokenizer, config.lm)
    lm_file, mimi_file = FileSource(files.model, config.quantization), FileSource(files.mimi)
    config = replace(config, lm=replace(config.lm, dep_q=depth_steps(lm_file, config.lm)))
    source = adapted(lm_file, adapter or files.required_adapter())
    with_split = is_split(lm_file.names)
    lm, mimi = _build(
        config, source, mimi_file, device, dtype, quantization, progress, split=with_split
    )
    logger.info("loaded {} on {} as {}", folder, device, quantization or dtype)
    return Checkpoint(config, lm, mimi, tokenizer, quantization)


def resolve_stored_format(
    folder: Path, config: ModelConfig, requested: Quantization | None, device: torch.device
) -> Quantization | None:
    """The format of a folder's weights in memory: the stored format if any, else the requested.

    Args:
        folder: The checkpoint's folder, for error messages.
        config: Its ``config.json``.
        requested: A format; None for floating point.
        device: Device of the model.

    Raises:
        ConfigError: The weights are stored in another low-bit format, or the device does not
            support theirs.
    """
    if config.quantization is None:
        return requested
    if requested not in (None, config.quantization):
        raise ConfigError(
            f"{folder} holds {config.quantization} weights, which cannot become "
            f"{requested}; leave the quantization out, or load the release it was made from"
        )
    require_runnable(config.quantization, device)
    return config.quantization


def random_model(
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    seed: int = 0,
) -> tuple[PersonaPlexLM, Mimi]:
    """Build models with random weights, for benchmarks, in the same way as ``load_checkpoint``.

    Args:
        config: The architecture.
        device: Device of the models.
        dtype: Type of the language model's weights.
        quantization: As in ``EngineConfig``.
        seed: Seed of the weights.
    """
    source = RandomSource(seed, device)
    return _build(config, source, source, device, dtype, quantization, None)


def _build(
    config: ModelConfig,
    lm_source: Source,
    mimi_source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
    progress: Progress | None,
    *,
    split: bool = False,
) -> tuple[PersonaPlexLM, Mimi]:
    # On the meta device parameters take no memory: each is allocated when its tensor is read.
    with torch.device("meta"):
        lm, mimi = PersonaPlexLM(config.lm), Mimi(config.mimi)
    total = sum(p.numel() for model in (lm, mimi) for p in model.parameters())
    done = 0

    def loaded(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    lm_source.require_all_known(entries := lm_layout(lm, config.lm.dep_q, split=split))
    assemble(lm, entries, lm_source, Target(device, dtype, quantization), loaded)
    mimi_source.require_all_known(entries := mimi_layout(mimi))
    assemble(mimi, entries, mimi_source, Target(device, torch.float32, None), loaded)
    lm.reset_constants(device)
    lm.depth.use_kernels()
    mimi.reset_constants(device)
    return lm, mimi


def _read_tokenizer(path: Path, config: LMConfig) -> Any:
    try:
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(read_small(path, _MAX_TOKENIZER_BYTES))
        pieces = tokenizer.get_piece_size()
        tokenizer.encode("A word.")  # some damage shows only here
        for piece in range(pieces):
            tokenizer.id_to_piece(piece)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not a SentencePiece model ({reason}); download it again"
        ) from None
    if pieces > config.text_card:
        raise CheckpointError(
            f"{path} has {pieces} pieces and the language model {config.text_card}; they belong "
            "to different checkpoints"
        )
    return tokenizer


def depth_steps(file: FileSource, config: LMConfig) -> int:
    """Number of depth steps, 8 or 16, whose weights the file holds; ``config.json`` may be wrong.

    Raises:
        CheckpointError: The file has another number.
    """
    width = config.depformer_dim
    if is_split(file.names):
        steps = sum(SPLIT_DEPTH.format(step) in file.names for step in range(2 * CODEBOOKS))
        if steps in (CODEBOOKS, 2 * CODEBOOKS):
            return steps
        raise CheckpointError(
            f"{file.path} has weights of {steps} depth steps; expected {CODEBOOKS} or "
            f"{2 * CODEBOOKS}"
        )
    shape = file.shape(DEPTH_STACK)
    for steps in (CODEBOOKS, 2 * CODEBOOKS):
        if shape == (steps * width, width):
            return steps
    raise CheckpointError(
        f"tensor {DEPTH_STACK} is {list(shape)}, expected [{CODEBOOKS * width}, {width}] or "
        f"[{2 * CODEBOOKS * width}, {width}]; {file.path} does not match config.json"
    )
