"""From tensors one at a time to a running module: never more than the result and one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipecat_personaplex.checkpoint.layout import Entry, scale_name, unknown_tensor
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.errors import CheckpointError
from pipecat_personaplex.models.device import Target
from pipecat_personaplex.models.linear import Linear, optimize_linear
from pipecat_personaplex.models.low_bit_linear import low_bit_linear
from pipecat_personaplex.quantization.weights import LowBit, empty, fill, storage

_FLOATS = ("F32", "F16", "BF16")
SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}
"""What a safetensors file calls the types that ours hold."""
# A prime, so that the rows of a random matrix differ although they come from one pool.
_RANDOM_POOL = 4_194_301
# Least count that divides a codebook's sums, as in the reference.
_MIN_USAGE = 1e-5


class Source(Protocol):
    """Where tensors come from.

    Attributes:
        quantization: Of the weights in it; None where all are floating point.
    """

    quantization: Quantization | None

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Refuse tensors that the model has no place for."""
        ...

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """A tensor of this shape in the file, or some of its rows."""
        ...

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """A weight that is low-bit already, or some of its rows."""
        ...


class FileSource:
    """A safetensors file, memory-mapped: only what is read is ever loaded.

    Args:
        path: The file.
        quantization: Of the weights in it, as its ``config.json`` says.

    Raises:
        CheckpointError: It is not a whole safetensors file.
    """

    def __init__(self, path: Path, quantization: Quantization | None = None):
        self.path = path
        self.quantization = quantization
        self._file = _open(path)
        self.names = frozenset(self._file.keys())

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Refuse tensors that the model has no place for.

        Raises:
            CheckpointError: There is one.
        """
        unknown = unknown_tensor(layout, self.names, self.quantization is not None)
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

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, which must be floating point.

        Raises:
            CheckpointError: The file has no such tensor, or it is of another kind.
        """
        kind = self._slice(name).get_dtype()
        for dtype, called in SAFETENSORS_NAMES.items():
            if kind == called and called in _FLOATS:
                return dtype
        raise self._wrong_type(name, kind, _FLOATS)

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """A view into the file, to be copied.

        Raises:
            CheckpointError: The tensor is missing, of another shape or not floating point.
        """
        return self._read(name, shape, rows, _FLOATS)

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """Views into the file, to be copied.

        Raises:
            CheckpointError: The weight or its scale is missing, or of another shape or type.
        """
        kept = storage(format, *entry.shape)
        weight_type = (SAFETENSORS_NAMES[kept.weight_dtype],)
        scale_type = (SAFETENSORS_NAMES[kept.scale_dtype],)
        return LowBit(
            format,
            entry.shape[1],
            self._read(entry.name, kept.weight, entry.rows, weight_type),
            self._read(scale_name(entry.name), kept.scale, entry.rows, scale_type),
        )

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        rows: tuple[int, int] | None,
        types: tuple[str, ...],
    ) -> Tensor:
        part = self._slice(name)
        found = part.get_shape()
        if tuple(found) != shape:
            raise CheckpointError(
                f"tensor {name} is {list(found)}, expected {list(shape)}; {self.path} does not "
                "match config.json"
            )
        if part.get_dtype() not in types:
            raise self._wrong_type(name, part.get_dtype(), types)
        start, stop = rows or (0, shape[0])
        view: Tensor = part[start:stop]
        return view

    def _wrong_type(self, name: str, found: str, types: tuple[str, ...]) -> CheckpointError:
        expected = types[0] if len(types) == 1 else f"one of {', '.join(types)}"
        return CheckpointError(
            f"tensor {name} is {found}, expected {expected}; {self.path} does not match the "
            f"quantization in config.json, which is {self.quantization or 'none'}"
        )

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
    """Weights that keep activations in range, for benchmarks; all floating point.

    All come from one pool of noise, so that a 7B model takes seconds, not minutes.

    Args:
        seed: Of the noise, which is the same on every device.
        device: Where the weights will be: made there, they need not be brought there.
    """

    quantization: Quantization | None = None

    def __init__(self, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_RANDOM_POOL, generator=generator).to(device)
        self._at = 0

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """There is nothing but what is asked for."""

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """There is nothing low-bit here."""
        raise AssertionError("random weights are floating point")

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


def assemble(
    model: nn.Module,
    layout: Sequence[Entry],
    source: Source,
    target: Target,
    placed: Callable[[int], None],
) -> None:
    """Fill a model that was built on the meta device, and leave it in eval mode.

    A Linear takes the form the device runs best as soon as its weight has arrived, so that the
    plain and the packed form of one layer only are ever in memory together. A low-bit one is
    quantised as it is read, and never there as a whole in floating point.

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
        placed(_place(model, entry, source, target))
    unfilled = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not unfilled, f"the layout leaves out {unfilled}"
    model.requires_grad_(False).eval()


def _place(model: nn.Module, entry: Entry, source: Source, target: Target) -> int:
    """Put one entry's tensor where it belongs; return how many weights that was."""
    path, _, leaf = entry.target.rpartition(".")
    owner = model.get_submodule(path)
    parameter: nn.Parameter = getattr(owner, leaf)
    if isinstance(owner, Linear):
        format = owner.format(target.quantization)
        if format is not None:
            low = _low_bit(parameter.shape, format, entry, source, target.device)
            model.set_submodule(path, low_bit_linear(low))
            return parameter.numel()
    part = _floats(entry, source).reshape(-1, *parameter.shape[1:])
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


def _floats(entry: Entry, source: Source) -> Tensor:
    part = source.read(entry.name, entry.shape, entry.rows)
    if entry.usage is not None:
        usage = source.read(entry.usage, entry.shape[:1], None)
        part = part.float() / usage.float().clamp(min=_MIN_USAGE)[:, None]
    return part if entry.axes is None else part.permute(entry.axes)


def _low_bit(
    shape: torch.Size, format: Quantization, entry: Entry, source: Source, device: torch.device
) -> LowBit:
    """A weight in its format, from floats or from a file that holds it so."""
    low = empty(format, shape[0], shape[1], device)
    if source.quantization is None:
        fill(low, 0, source.read(entry.name, entry.shape, entry.rows))
    else:
        stored = source.read_low_bit(format, entry)
        low.weight.copy_(stored.weight)
        low.scale.copy_(stored.scale)
    return low
