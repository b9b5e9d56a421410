"""Fills a model on the meta device from a source of tensors, one tensor at a time.

Peak memory is the filled model and one tensor.
"""

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
from pipecat_personaplex.models.low_bit_linear import CpuKernelLinear, low_bit_linear
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
"""Names of types in a safetensors file."""
# A prime, so that rows of a random matrix differ although all come from one pool.
_RANDOM_POOL = 4_194_301
# Lower bound of the usage counts that divide a codebook's sums, as in the reference.
_MIN_USAGE = 1e-5


class Source(Protocol):
    """A source of tensors.

    Attributes:
        quantization: Format of its low-bit weights; None if all are floating point.
    """

    quantization: Quantization | None

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Check that the model has a parameter for every tensor."""
        ...

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """Read a tensor of this shape, or its rows from ``rows[0]`` to ``rows[1]``."""
        ...

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """Read a weight that is stored in a low-bit format, or some of its rows."""
        ...


class FileSource:
    """A memory-mapped safetensors file: only the tensors that are read are loaded.

    Args:
        path: The file.
        quantization: Format of its low-bit weights, from ``config.json``.

    Raises:
        CheckpointError: It is not a complete safetensors file.
    """

    def __init__(self, path: Path, quantization: Quantization | None = None):
        self.path = path
        self.quantization = quantization
        self._file = _open(path)
        self.names = frozenset(self._file.keys())

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Check that the model has a parameter for every tensor.

        Raises:
            CheckpointError: A tensor has none.
        """
        unknown = unknown_tensor(layout, self.names, self.quantization is not None)
        if unknown is not None:
            raise CheckpointError(
                f"tensor {unknown} has no place in the model; {self.path} does not match "
                "config.json"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            CheckpointError: The file has no such tensor.
        """
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of a floating-point tensor.

        Raises:
            CheckpointError: The file has no such tensor, or it is not floating point.
        """
        found = self._slice(name).get_dtype()
        for dtype, type_name in SAFETENSORS_NAMES.items():
            if found == type_name and type_name in _FLOATS:
                return dtype
        raise self._wrong_type(name, found, _FLOATS)

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """Read a floating-point tensor, as a view into the mapped file that must be copied.

        Raises:
            CheckpointError: The tensor is missing, of another shape or not floating point.
        """
        return self._read(name, shape, rows, _FLOATS)

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """Read a low-bit weight and its scale, as views into the mapped file to be copied.

        Raises:
            CheckpointError: The weight or its scale is missing, or of another shape or type.
        """
        stored = storage(format, *entry.shape)
        weight_type = (SAFETENSORS_NAMES[stored.weight_dtype],)
        scale_type = (SAFETENSORS_NAMES[stored.scale_dtype],)
        return LowBit(
            format,
            entry.shape[1],
            self._read(entry.name, stored.weight, entry.rows, weight_type),
            self._read(scale_name(entry.name), stored.scale, entry.rows, scale_type),
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
    except UnicodeError:
        raise CheckpointError(f"{path}: rename it so that its path is valid Unicode") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut off or not a safetensors file ({error}); download it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


class RandomSource:
    """Random floating-point weights for benchmarks, scaled to keep activations in range.

    All tensors are cut from one pool of noise, so that a 7B model takes seconds, not minutes.

    Args:
        seed: Seed of the noise. The same seed gives the same weights on every device.
        device: Device on which the tensors are computed.
    """

    quantization: Quantization | None = None

    def __init__(self, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_RANDOM_POOL, generator=generator).to(device)
        self._offset = 0

    def require_all_known(self, layout: Sequence[Entry]) -> None:
        """Accept every layout: tensors are computed on request."""

    def read_low_bit(self, format: Quantization, entry: Entry) -> LowBit:
        """Never called: random weights are floating point."""
        raise AssertionError("random weights are floating point")

    def read(self, name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> Tensor:
        """Noise whose scale and mean follow from the tensor's name and shape."""
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
        """The next ``count`` numbers of the pool, which is read in a circle."""
        noise = torch.empty(count, device=self._pool.device)
        filled = 0
        while filled < count:
            run = min(count - filled, _RANDOM_POOL - self._offset)
            noise[filled : filled + run] = self._pool[self._offset : self._offset + run]
            filled += run
            self._offset = (self._offset + run) % _RANDOM_POOL
        return noise


def assemble(
    model: nn.Module,
    layout: Sequence[Entry],
    source: Source,
    target: Target,
    loaded: Callable[[int], None],
) -> None:
    """Fill a model that was built on the meta device, and set it to eval mode.

    Each Linear is converted to the form that the device runs best right after its weight is
    read, so that only one layer at a time is in memory in both forms. A low-bit weight is
    quantised block by block while it is read, and never copied as a whole in floating point.

    Args:
        model: All parameters on the meta device.
        layout: Entries that cover every parameter.
        source: Gives the tensors.
        target: Device and formats of the parameters.
        loaded: Called after each entry with the number of weights that it has filled.

    Raises:
        CheckpointError: A tensor of the source does not match the layout.
    """
    for entry in layout:
        loaded(_load_entry(model, entry, source, target))
    unfilled = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not unfilled, f"the layout leaves out {unfilled}"
    model.requires_grad_(False).eval()


def _load_entry(model: nn.Module, entry: Entry, source: Source, target: Target) -> int:
    """Read one entry into its parameter; return the number of weights."""
    path, _, leaf = entry.target.rpartition(".")
    owner = model.get_submodule(path)
    parameter: nn.Parameter = getattr(owner, leaf)
    if isinstance(owner, Linear):
        format = owner.format(target.quantization)
        if format is not None:
            low_bit = _read_low_bit(parameter.shape, format, entry, source, target.device)
            model.set_submodule(path, low_bit_linear(low_bit))
            return parameter.numel()
    part = _read_floats(entry, source).reshape(-1, *parameter.shape[1:])
    if part.shape != parameter.shape:  # one of several entries that fill this parameter
        if parameter.is_meta:
            whole = torch.empty(parameter.shape, device=target.device, dtype=target.dtype)
            parameter = nn.Parameter(whole, requires_grad=False)
            setattr(owner, leaf, parameter)
        parameter.data[entry.into : entry.into + part.shape[0]] = part
        return part.numel()
    # Always copy: a view would keep the file mapped, and later writes to the file would change it.
    weight = part.to(device=target.device, dtype=target.dtype, copy=True)
    setattr(owner, leaf, nn.Parameter(weight, requires_grad=False))
    if isinstance(owner, Linear):
        optimized = optimize_linear(owner, target.quantization)
        if optimized is not owner:
            model.set_submodule(path, optimized)
    return part.numel()


def _read_floats(entry: Entry, source: Source) -> Tensor:
    """A parameter's rows in floating point, with the entry's division and permutation applied."""
    part = source.read(entry.name, entry.shape, entry.rows)
    if entry.usage is not None:
        usage = source.read(entry.usage, entry.shape[:1], None)
        part = part.float() / usage.float().clamp(min=_MIN_USAGE)[:, None]
    return part if entry.axes is None else part.permute(entry.axes)


def _read_low_bit(
    shape: torch.Size, format: Quantization, entry: Entry, source: Source, device: torch.device
) -> LowBit:
    """A weight in a low-bit format: read as stored, or quantised from a floating-point source."""
    if source.quantization is None:
        low_bit = empty(format, shape[0], shape[1], device)
        fill(low_bit, 0, source.read(entry.name, entry.shape, entry.rows))
        return low_bit
    stored = source.read_low_bit(format, entry)
    if device.type == "cpu" and CpuKernelLinear.supports(stored):
        return stored  # the layer copies it
    low_bit = empty(format, shape[0], shape[1], device)
    low_bit.weight.copy_(stored.weight)
    low_bit.scale.copy_(stored.scale)
    return low_bit
