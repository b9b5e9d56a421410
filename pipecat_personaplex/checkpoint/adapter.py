"""Merges a LoRA adapter in Kyutai's layout into a checkpoint's weights, tensor by tensor.

An adapter holds, for a layer ``name`` of N outputs and K inputs, ``name.lora_A.weight`` [r, K] and
``name.lora_B.weight`` [N, r]; the merged weight is ``W + scaling * B @ A``. It may also hold whole
tensors, such as trained embeddings, which replace those of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from loguru import logger
from torch import Tensor

from pipecat_personaplex.checkpoint.adapter_file import AdapterFile
from pipecat_personaplex.checkpoint.layout import AttentionLayer, Entry, is_depth_stack, is_unused
from pipecat_personaplex.checkpoint.weights import FileSource
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.errors import CheckpointError, ConfigError
from pipecat_personaplex.quantization.weights import LowBit

_HALF = re.compile(r"(.+)\.lora_([AB])\.weight")
_HALVES = {"A", "B"}
_STACKED_STEPS = (CODEBOOKS, 2 * CODEBOOKS)


@dataclass(frozen=True)
class _Update:
    """The update of some rows of one tensor of the checkpoint.

    Attributes:
        layer: Name of the layer in the adapter.
        first: First row of the tensor.
        rows: Number of rows.
        part: Index of the update if the adapter stacks those of several depth steps, and their
            number; (0, 1) if it does not.
    """

    layer: str
    first: int
    rows: int
    part: tuple[int, int] = (0, 1)


def adapted(base: FileSource, adapter: AdapterFile | None) -> FileSource | AdaptedSource:
    """A checkpoint's tensors, with an adapter merged into them if there is one.

    Raises:
        ConfigError: The checkpoint's weights are low-bit already.
        CheckpointError: The adapter does not belong to this checkpoint, or is damaged.
    """
    if adapter is None:
        return base
    logger.info("merging the adapter {} with scaling {:g}", adapter.path, adapter.scaling)
    if base.quantization is not None:
        raise ConfigError(
            f"{base.path} holds {base.quantization} weights, into which no adapter can be merged; "
            "load the release they were made from, with the adapter and the quantization"
        )
    return AdaptedSource(base, adapter)


class AdaptedSource:
    """A checkpoint's tensors with an adapter merged into them, in float32.

    Nothing is stored: each tensor is merged when it is read.

    Args:
        base: The checkpoint.
        adapter: The adapter.

    Raises:
        CheckpointError: The adapter does not belong to this checkpoint, or is damaged.
    """

    quantization: Quantization | None = None

    def __init__(self, base: FileSource, adapter: AdapterFile):
        self._base = base
        self._adapter = adapter
        self._file = FileSource(adapter.path)
        self._updates: dict[str, list[_Update]] = {}
        self._replaced: set[str] = set()
        self._index()

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Check that the model has a parameter for every tensor of the checkpoint."""
        self._base.require_all_known(layout)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor as ``read`` returns it."""
        if name in self._updates:
            return torch.float32
        return (self._file if name in self._replaced else self._base).dtype(name)

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """Never called: adapters are merged into floating-point weights only."""
        raise AssertionError("the weights are floating point")

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """Read a tensor, or some of its rows, with the adapter merged into it.

        Raises:
            CheckpointError: The tensor is missing, of another shape or not floating point.
        """
        if name in self._replaced:
            return self._file.read(name, shape, rows)
        part = self._base.read(name, shape, rows)
        updates = self._updates.get(name)
        if updates is None:
            return part
        start, stop = rows or (0, shape[0])
        merged = part.to(torch.float32, copy=True)
        for update in updates:
            first, last = max(start, update.first), min(stop, update.first + update.rows)
            if first < last:
                into = merged[first - start : last - start]
                down, up = self._halves(update, first - update.first, last - update.first)
                into.addmm_(up, down, alpha=self._adapter.scaling)
        return merged

    def _halves(self, update: _Update, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """``lora_A`` [r, K] and rows ``start`` to ``stop`` of ``lora_B`` [stop - start, r]."""
        (down_shape, up_shape), (index, count) = self._shapes(update.layer), update.part
        rank, height = down_shape[0] // count, up_shape[0] // count
        down_rows = (index * rank, (index + 1) * rank)
        up_rows = (index * height + start, index * height + stop)
        down = self._file.read(_half(update.layer, "A"), down_shape, down_rows)
        up = self._file.read(_half(update.layer, "B"), up_shape, up_rows)
        return down.float(), up.float()

    def _shapes(self, layer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._file.shape(_half(layer, "A")), self._file.shape(_half(layer, "B"))

    def _index(self) -> None:
        """Check every tensor of the adapter, and note what it updates."""
        layers: dict[str, set[str]] = {}
        for name in sorted(self._file.names):
            if half := _HALF.fullmatch(name):
                layers.setdefault(half[1], set()).add(half[2])
            else:
                self._replace(name)
        for layer, halves in layers.items():
            if halves != _HALVES:
                [missing] = _HALVES - halves
                raise self._wrong(f"it has no {_half(layer, missing)}")
            if f"{layer}.weight" in self._replaced:
                raise self._wrong(f"it holds {layer}.weight both whole and as an update")
            self._update(layer)
        if not layers and not self._replaced:
            raise self._wrong("it holds no tensors")

    def _replace(self, name: str) -> None:
        if name not in self._base.names:
            raise self._wrong(
                f"its tensor {name[:100]} has no place in the checkpoint; Kyutai's layout has "
                "names like transformer.layers.0.gating.linear_in.lora_A.weight"
            )
        expected, found = self._base.shape(name), self._file.shape(name)
        if found != expected:
            raise self._wrong(f"its tensor {name} is {list(found)}, expected {list(expected)}")
        self._file.dtype(name)
        self._replaced.add(name)

    def _update(self, layer: str) -> None:
        """Note what a layer of the adapter updates."""
        for half in "AB":
            self._file.dtype(_half(layer, half))
        down, up = self._shapes(layer)
        if len(down) != 2 or len(up) != 2:
            raise self._wrong(f"{layer}: lora_A is {list(down)} and lora_B is {list(up)}")
        for name, update in self._targets(layer, down, up):
            if name not in self._base.names and is_unused(name):
                continue  # a depth step that the checkpoint does not have
            self._check(name, update, down, up)
            self._updates.setdefault(name, []).append(update)

    def _targets(
        self, layer: str, down: tuple[int, ...], up: tuple[int, ...]
    ) -> Iterator[tuple[str, _Update]]:
        """The tensors of the checkpoint that a layer of the adapter updates, and which rows."""
        attention = AttentionLayer.of(layer)
        if attention is None:
            yield f"{layer}.weight", _Update(layer, 0, up[0])
            return
        # The adapter has a layer for each depth step, or one that stacks all of them; so has the
        # checkpoint, but it may be the other one.
        count = 1 if attention.step is not None else max(1, down[0] // max(1, up[1]))
        height = up[0] // count
        for part in range(min(count, CODEBOOKS)):
            step = part if attention.step is None else attention.step
            if step >= CODEBOOKS and is_depth_stack(attention.stacked):
                continue  # it predicts the user's codes, and is not loaded
            split = attention.split(step)
            if split in self._base.names:
                yield split, _Update(layer, 0, height, (part, count))
            else:
                yield attention.stacked, _Update(layer, step * height, height, (part, count))

    def _check(
        self, name: str, update: _Update, down: tuple[int, ...], up: tuple[int, ...]
    ) -> None:
        """Check the shapes of an update against the tensor's, and its rank."""
        layer, (_, stacked) = update.layer, update.part
        if name not in self._base.names:
            raise self._wrong(f"its layer {layer[:100]} has no place in the checkpoint")
        shape, rank = self._base.shape(name), up[1]
        if update.first + update.rows > shape[0] and up[0] == stacked * update.rows:
            raise self._wrong(f"its layer {layer[:100]} has no place in {name} of {list(shape)}")
        # The tensor has the height of the update, or stacks that many depth steps.
        steps = _STACKED_STEPS if is_depth_stack(name) else (1,)
        fits = (
            down == (stacked * rank, shape[-1])
            and up[0] == stacked * update.rows
            and shape[0] in [count * update.rows for count in steps]
        )
        if not fits:
            raise self._wrong(
                f"{layer}: lora_A is {list(down)} and lora_B is {list(up)}, which do not fit "
                f"{name} of {list(shape)}"
            )
        if self._adapter.rank not in (None, rank):
            raise self._wrong(
                f"{layer} has rank {rank}, and its config.json says {self._adapter.rank}"
            )

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"adapter {self._adapter.path} does not fit {self._base.path}: {what}; use it with the "
            "checkpoint that it was trained on"
        )


def _half(layer: str, half: str) -> str:
    return f"{layer}.lora_{half}.weight"
