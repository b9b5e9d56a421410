"""A checkpoint in the release's layout, loaded into memory once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from loguru import logger
from rich.console import Console
from rich.progress import Progress as Bars

from pipecat_personaplex.checkpoint.layout import (
    CONFIG_FILE,
    DEPTH_STACK,
    MIMI_FILE,
    MODEL_FILE,
    MODEL_FILES,
    TOKENIZER_FILE,
    lm_layout,
    mimi_layout,
)
from pipecat_personaplex.checkpoint.weights import FileSource, RandomSource, Source, assemble
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import CheckpointError, ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.device import Target, require_runnable
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

Progress = Callable[[int, int], None]
"""(weights placed, weights in all), after every tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        config: Its architecture; ``lm.dep_q`` is what the file holds.
        lm: The language model.
        mimi: The codec, float32.
        tokenizer: A ``sentencepiece.SentencePieceProcessor``.
        quantization: How the transformers' weights are kept; None is floating point.
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
    progress: Progress | None = None,
) -> Checkpoint:
    """Load the language model, the codec and the tokenizer.

    Peak memory is that of the result and one tensor. Of 16 depth sets the first 8 are read.

    Args:
        folder: Holds the release's files; ``config.json`` may be absent (then it is the 7B).
        device: Where the models go.
        dtype: Of the language model.
        quantization: As in ``EngineConfig``.
        progress: Told after each tensor.

    Returns:
        Both models in eval mode, with no gradients.

    Raises:
        CheckpointError: A file is missing, cut off, or does not match ``config.json``.
        ConfigError: ``config.json`` cannot be used, or its quantization is another than asked for.
    """
    require_files(folder)
    config = read_config(folder / CONFIG_FILE)
    quantization = resolve_quantization(folder, config, quantization, device)
    tokenizer = _read_tokenizer(folder / TOKENIZER_FILE, config.lm)
    lm_file = FileSource(folder / MODEL_FILE, config.quantization)
    mimi_file = FileSource(folder / MIMI_FILE)
    config = replace(config, lm=replace(config.lm, dep_q=depth_steps(lm_file, config.lm)))
    lm, mimi = _build(config, lm_file, mimi_file, device, dtype, quantization, progress)
    logger.info("loaded {} on {} as {}", folder, device, quantization or dtype)
    return Checkpoint(config, lm, mimi, tokenizer, quantization)


def resolve_quantization(
    folder: Path, config: ModelConfig, wanted: Quantization | None, device: torch.device
) -> Quantization | None:
    """How a folder's weights will be kept: as asked for, or as they are.

    Raises:
        ConfigError: They are kept another way already, or the device cannot multiply them.
    """
    if config.quantization is None:
        return wanted
    if wanted not in (None, config.quantization):
        raise ConfigError(
            f"{folder} holds {config.quantization} weights, which cannot become "
            f"{wanted}; leave the quantization out, or load the release it was made from"
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
    """Models with random weights, put together as ``load_checkpoint`` does, for benchmarks.

    Args:
        config: The architecture.
        device: Where the models go.
        dtype: Of the language model.
        quantization: As in ``EngineConfig``.
        seed: Of the weights.
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
) -> tuple[PersonaPlexLM, Mimi]:
    # Built without memory: each parameter takes its place only when it arrives.
    with torch.device("meta"):
        lm, mimi = PersonaPlexLM(config.lm), Mimi(config.mimi)
    total = sum(p.numel() for model in (lm, mimi) for p in model.parameters())
    done = 0

    def placed(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    lm_source.require_all_known(entries := lm_layout(lm, config.lm.dep_q))
    assemble(lm, entries, lm_source, Target(device, dtype, quantization), placed)
    mimi_source.require_all_known(entries := mimi_layout(mimi))
    assemble(mimi, entries, mimi_source, Target(device, torch.float32, None), placed)
    lm.reset_constants(device)
    lm.depth.use_kernels()
    mimi.reset_constants(device)
    return lm, mimi


def require_files(folder: Path, names: Sequence[str] = MODEL_FILES) -> None:
    """Whatever is missing is named at once.

    Raises:
        CheckpointError: Something is.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)}; a PersonaPlex checkpoint is a folder with the "
            "release's files"
        )


def read_config(path: Path) -> ModelConfig:
    """Read a ``config.json``; where there is none, the released 7B's.

    Raises:
        ConfigError: It cannot be used.
    """
    if not path.is_file():
        return ModelConfig()
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return ModelConfig.from_dict(values)


def _read_tokenizer(path: Path, config: LMConfig) -> Any:
    try:
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model ({error}); download it again"
        ) from None
    pieces = tokenizer.get_piece_size()
    if pieces > config.text_card:
        raise CheckpointError(
            f"{path} has {pieces} pieces and the language model {config.text_card}; they belong "
            "to different checkpoints"
        )
    return tokenizer


def depth_steps(file: FileSource, config: LMConfig) -> int:
    """Depth sets that the file holds, whatever ``config.json`` says of them."""
    shape = file.shape(DEPTH_STACK)
    for steps in (CODEBOOKS, 2 * CODEBOOKS):
        if shape == (steps * config.depformer_dim, config.depformer_dim):
            return steps
    width = config.depformer_dim
    raise CheckpointError(
        f"tensor {DEPTH_STACK} is {list(shape)}, expected [{CODEBOOKS * width}, {width}] or "
        f"[{2 * CODEBOOKS * width}, {width}]; {file.path} does not match config.json"
    )


@contextmanager
def loading_bar(shown: bool, title: str = "loading the model") -> Iterator[Progress | None]:
    """A bar on the terminal for what takes its time with a checkpoint's weights."""
    if not shown:
        yield None
        return
    with Bars(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
