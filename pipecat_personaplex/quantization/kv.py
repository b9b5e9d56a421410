"""Storage of keys and values: a floating-point type, or e4m3 with one scale per vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipecat_personaplex.quantization.fp8 import FP8, FP8_MAX

SMALLEST_AMAX = 1e-30
"""Lower bound of a vector's largest magnitude. A smaller one would make a scale that underflows,
so such a vector is stored as zeros."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each vector of the last dimension on its own.

    The scale maps the vector's largest magnitude to ``FP8_MAX``.

    Args:
        x: Floating-point [..., D].

    Returns:
        e4m3 [..., D] and float32 scales [...].
    """
    x = x.float()
    scales = x.abs().amax(dim=-1).clamp(min=SMALLEST_AMAX) / FP8_MAX
    return (x / scales[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


@dataclass(frozen=True, slots=True)
class KVTensor:
    """Stored keys or values.

    Attributes:
        data: [..., D], float32, bfloat16 or e4m3.
        scales: float32 [...] for e4m3, otherwise None.
    """

    data: Tensor
    scales: Tensor | None

    @staticmethod
    def new(
        shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, zeros: bool
    ) -> KVTensor:
        """Allocate ``shape``, filled with zeros or left uninitialised."""
        make = torch.zeros if zeros else torch.empty
        if dtype != FP8:
            return KVTensor(make(shape, dtype=dtype, device=device), None)
        bits = make(shape, dtype=torch.uint8, device=device)
        return KVTensor(bits.view(FP8), make(shape[:-1], dtype=torch.float32, device=device))

    @property
    def nbytes(self) -> int:
        """Bytes of memory, scales included."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def bits(self) -> Tensor:
        """``data``, with e4m3 viewed as uint8: PyTorch does not index or copy e4m3 everywhere."""
        return self.data if self.scales is None else self.data.view(torch.uint8)

    def __getitem__(self, index: Any) -> KVTensor:
        """Index any dimension except the last."""
        if self.scales is None:
            return KVTensor(self.data[index], None)
        return KVTensor(self.bits[index].view(FP8), self.scales[index])

    def put(self, index: Any, x: Tensor) -> None:
        """Store floating-point vectors at ``index``, which must not index the last dimension."""
        if self.scales is None:
            self.data[index] = x if x.dtype == self.data.dtype else x.to(self.data.dtype)
        else:
            data, self.scales[index] = quantize(x)
            self.bits[index] = data.view(torch.uint8)

    def read(self, dtype: torch.dtype, index: Any = ...) -> Tensor:
        """The vectors at ``index`` in ``dtype``; a view if they are stored in ``dtype``."""
        if self.scales is None:
            part = self.data[index]
            return part if part.dtype == dtype else part.to(dtype)
        part = self.bits[index].view(FP8)
        return (part.float() * self.scales[index][..., None]).to(dtype)

    def zero_(self) -> None:
        """Fill with zeros."""
        self.bits.zero_()
        if self.scales is not None:
            self.scales.zero_()
