"""From tensors one at a time to a running module: never more than the result and one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipecat_personaplex.engine.layout import Entry, unknown_tensor
from pipecat_personaplex.errors import CheckpointError
from pipecat_personaplex.models.layers import Linear, optimize_linear

_FLOATS = ("F32", "F16", "BF16")
# A prime, so that the rows of a random matrix differ although they come from one pool.
_RANDOM_POOL = 4_194_301
# Least count that divides a codebook's sums, as in the reference.
_MIN_USAGE = 1e-5


class Source(Protocol):
    """Where tensors come from."""

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Refuse tensors that the model has no place for."""
        ...

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """A tensor of this shape in the file, or some of its rows."""
        ...


class FileSource:
    """A safetensors file, memory-mapped: only what is read is ever loaded.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is not a whole safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = _open(path)
        self.names = frozenset(self._file.keys())

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Refuse tensors that the model has no place for.

        Raises:
            CheckpointError: There is one.
        """
        unknown = unknown_tensor(layout, self.names)
        if unknown is not None:
            raise CheckpointError(
                f"tensor {unknown} has no place in the model; {self.path} does not match "
                "config.json"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor.

        Raises:
            CheckpointError: The file has no such tensor.
        """
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """A view into the file, to be copied.

        Raises:
            CheckpointError: The tensor is missing, of another shape or not floating point.
        """
        part = self._slice(name)
        found = part.get_shape()
        if tuple(found) != shape:
            raise CheckpointError(
                f"tensor {name} is {list(found)}, expected {list(shape)}; {self.path} does not "
                "match config.json"
            )
        if part.get_dtype() not in _FLOATS:
            raise CheckpointError(
                f"tensor {name} is {part.get_dtype()}, expected one of {', '.join(_FLOATS)}; "
                f"use an unquantized {self.path.name}"
            )
        start, stop = rows or (0, shape[0])
        view: Tensor = part[start:stop]
        return view

    def _slice(self, name: str) -> Any:
        if name not in self.names:
            raise CheckpointError(
                f"tensor {name} is missing from {self.path}; the file does not match config.json"
            )
        return self._file.get_slice(name)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut off or not a safetensors file ({error}); download it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


class RandomSource:
    """Weights that keep activations in range, for benchmarks.

    All come from one pool of noise, so that a 7B model takes seconds, not minutes.

    Args:
        seed: Of the noise, which is the same on every device.
        device: Where the weights will be: made there, they need not be brought there.
    """

    def __init__(self, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_RANDOM_POOL, generator=generator).to(device)
        self._at = 0

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """There is nothing but what is asked for."""

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """Noise scaled by the tensor's role, which its name tells."""
        if rows is not None:
            shape = (rows[1] - rows[0], *shape[1:])
        noise = self._take(math.prod(shape)).view(shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "scale":
            return noise.fill_(0.01)
        if leaf == "cluster_usage":
            return noise.fill_(1.0)
        if len(shape) == 1 or leaf == "alpha":
            return noise.mul_(0.01).add_(0.0 if leaf == "bias" else 1.0)
        return noise.div_(math.sqrt(math.prod(shape[1:])))

    def _take(self, count: int) -> Tensor:
        taken = torch.empty(count, device=self._pool.device)
        filled = 0
        while filled < count:
            run = min(count - filled, _RANDOM_POOL - self._at)
            taken[filled : filled + run] = self._pool[self._at : self._at + run]
            filled += run
            self._at = (self._at + run) % _RANDOM_POOL
        return taken


class Target(NamedTuple):
    """Where and how a model's weights are kept.

    Attributes:
        device: Where.
        dtype: Of the parameters.
        quantization: ``"int8"`` or None.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str | None


def assemble(
    model: nn.Module,
    layout: Sequence[Entry],
    source: Source,
    target: Target,
    placed: Callable[[int], None],
) -> None:
    """Fill a model that was built on the meta device, and leave it in eval mode.

    A Linear takes the form the device runs best as soon as its weight has arrived, so that the
    plain and the packed form of one layer only are ever in memory together.

    Args:
        model: All parameters on the meta device.
        layout: Entries that cover every parameter.
        source: Where the tensors come from.
        target: Where and how they are kept.
        placed: Told how many weights each entry brought.

    Raises:
        CheckpointError: The source's tensors are not what the layout says.
    """
    for entry in layout:
        part = source.read(entry.name, entry.shape, entry.rows)
        if entry.usage is not None:
            usage = source.read(entry.usage, entry.shape[:1], None)
            part = part.float() / usage.float().clamp(min=_MIN_USAGE)[:, None]
        if entry.axes is not None:
            part = part.permute(entry.axes)
        placed(_place(model, entry, part, target))
    unfilled = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not unfilled, f"the layout leaves out {unfilled}"
    model.requires_grad_(False).eval()


def _place(model: nn.Module, entry: Entry, part: Tensor, target: Target) -> int:
    """Put one entry's tensor where it belongs; return how many weights that was."""
    path, _, leaf = entry.target.rpartition(".")
    owner = model.get_submodule(path)
    parameter: nn.Parameter = getattr(owner, leaf)
    part = part.reshape(-1, *parameter.shape[1:])
    if part.shape != parameter.shape:
        if parameter.is_meta:
            whole = torch.empty(parameter.shape, device=target.device, dtype=target.dtype)
            parameter = nn.Parameter(whole, requires_grad=False)
            setattr(owner, leaf, parameter)
        parameter.data[entry.into : entry.into + part.shape[0]] = part
        return part.numel()
    # Always a copy: a view would keep the file mapped, and at the mercy of who writes to it.
    weight = part.to(device=target.device, dtype=target.dtype, copy=True)
    setattr(owner, leaf, nn.Parameter(weight, requires_grad=False))
    if isinstance(owner, Linear):
        optimized = optimize_linear(owner, target.quantization)
        if optimized is not owner:
            model.set_submodule(path, optimized)
    return part.numel()
