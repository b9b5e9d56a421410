"""The 8-bit float that weights, keys and values are stored in."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
"""Four exponent bits, three mantissa bits, no infinities."""
FP8_MAX = 448.0
"""The largest finite e4m3 number."""
FP8_CAPABILITY = (8, 9)
"""The lowest CUDA compute capability with e4m3 instructions."""
