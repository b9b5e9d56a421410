"""A weight as the GEMM kernel takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pipecat_personaplex.config import Quantization


class KernelWeight(NamedTuple):
    """The arguments of ``kernels.gemm`` that describe a weight.

    Attributes:
        weight: [N, K], in the type of the activations or low-bit.
        scale: Scales of a low-bit weight, in the kernel's layout; otherwise None.
        format: Format of a low-bit weight; otherwise None.
    """

    weight: Tensor
    scale: Tensor | None
    format: Quantization | None

    def multiply(
        self,
        x: Tensor,
        *,
        alpha: Tensor | None = None,
        eps: float = 0.0,
        gate: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """[..., K] -> [..., N] in one launch; see ``kernels.gemm.gemm``."""
        from pipecat_personaplex.kernels.gemm import gemm

        return gemm(x, *self, alpha=alpha, eps=eps, gate=gate, residual=residual)
