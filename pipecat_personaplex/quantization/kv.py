"""How keys and values are kept: in a floating-point type, or in 8 bits with a scale a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest number that e4m3 holds."""
SMALLEST_AMAX = 1e-30
"""Vectors smaller than this are kept as zeros: their scale could no longer be divided by."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Floating-point [..., D] -> e4m3 [..., D] and float32 scales [...].

    A scale takes its vector's largest number to the largest that e4m3 holds.
    """
    x = x.float()
    scales = x.abs().amax(dim=-1).clamp(min=SMALLEST_AMAX) / FP8_MAX
    return (x / scales[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


@dataclass(frozen=True, slots=True)
class KVTensor:
    """Keys or values as they are kept.

    Attributes:
        data: [..., D], float32, bfloat16 or e4m3.
        scales: Of e4m3, float32 [...]; otherwise None.
    """

    data: Tensor
    scales: Tensor | None

    @staticmethod
    def new(
        shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, zeros: bool
    ) -> KVTensor:
        """Of this shape, filled with zeros or with whatever is there."""
        make = torch.zeros if zeros else torch.empty
        if dtype != FP8:
            return KVTensor(make(shape, dtype=dtype, device=device), None)
        bits = make(shape, dtype=torch.uint8, device=device)
        return KVTensor(bits.view(FP8), make(shape[:-1], dtype=torch.float32, device=device))

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def bits(self) -> Tensor:
        """The data as torch moves it everywhere: bytes in place of e4m3."""
        return self.data if self.scales is None else self.data.view(torch.uint8)

    def __getitem__(self, index: Any) -> KVTensor:
        """Index any dimension but the last."""
        if self.scales is None:
            return KVTensor(self.data[index], None)
        return KVTensor(self.bits[index].view(FP8), self.scales[index])

    def put(self, index: Any, x: Tensor) -> None:
        """Lay floating-point numbers into what ``index`` names; it may not index the last one."""
        if self.scales is None:
            self.data[index] = x if x.dtype == self.data.dtype else x.to(self.data.dtype)
        else:
            data, self.scales[index] = quantize(x)
            self.bits[index] = data.view(torch.uint8)

    def read(self, dtype: torch.dtype, index: Any = ...) -> Tensor:
        """What ``index`` names as floating-point numbers; a view if that is how they are kept."""
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
