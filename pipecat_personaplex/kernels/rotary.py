"""The rotary angles of a step, as the models compute them and the kernels apply them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RotaryCosSin(NamedTuple):
    """Cosines and sines of a step's positions, shared by all layers of a transformer.

    Attributes:
        cos: float32 [B, 1, T, D / 2], contiguous: one for each interleaved pair of features.
        sin: The same shape.
    """

    cos: Tensor
    sin: Tensor
