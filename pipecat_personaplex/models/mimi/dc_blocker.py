"""A high-pass at 20 Hz in front of the codec's encoder, one frame at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.models.layers import Rows

CUTOFF_HZ = 20.0


class DcBlocker:
    """Removes the DC offset of sound cards, and rumble.

    The running mean of each stream is subtracted from its samples: a filter of the first order
    with its -3 dB point at ``CUTOFF_HZ``. Each row of the result depends on its own stream only.

    Args:
        slots: Number of streams.
        device: Device of the audio.

    Attributes:
        means: The running mean of each stream after its last sample, float32 [slots, 1].
    """

    def __init__(self, slots: int, device: torch.device):
        keep = math.exp(-2 * math.pi * CUTOFF_HZ / SAMPLE_RATE)
        powers = keep ** torch.arange(FRAME_SAMPLES, dtype=torch.float64)
        # mean[n] = keep * mean[n - 1] + (1 - keep) * x[n]
        #         = powers[n] * (keep * mean[-1] + sum of growth[k] * x[k] for k = 0 to n)
        self._keep = keep
        self._powers = powers.float().to(device)
        self._growth = (
            ((1 - keep) / powers).float().to(device)
        )  # up to 120: float32 is exact enough
        self.means = torch.zeros(slots, 1, device=device)

    def __call__(self, pcm: Tensor, rows: Rows) -> Tensor:
        """Filter one frame of the streams ``rows``: float32 [B, 1920] -> [B, 1920]."""
        sums = torch.cumsum(pcm * self._growth, dim=1)
        means = self._powers * (self._keep * self.means[rows] + sums)
        self.means[rows] = means[:, -1:]
        return pcm - means
