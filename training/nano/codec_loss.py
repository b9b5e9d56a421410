"""What the codec is trained to keep: magnitudes at several resolutions, more than waveform."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.config import SAMPLE_RATE

# Window lengths in samples: long ones tell pitch, short ones timing.
_WINDOWS = (1536, 512, 192)
_FLOOR = 1e-3
# Bands of the mel scale, for the windows long enough to tell them apart. They weigh most: the
# ear, and intelligibility, live below 5 kHz, linear bins mostly above.
_MEL_BANDS = {1536: 64, 512: 32}
_MEL_WEIGHT = 4.0


def mel_filters(bins: int, bands: int) -> Tensor:
    """Triangles on the mel scale, [bins, bands]."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, bins)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class SpectralLoss(nn.Module):
    """L1 between magnitudes, linear and log, at several window lengths, and log-mel."""

    def __init__(self) -> None:
        super().__init__()
        for length in _WINDOWS:
            self.register_buffer(f"window{length}", torch.hann_window(length))
        for length, bands in _MEL_BANDS.items():
            self.register_buffer(f"mel{length}", mel_filters(length // 2 + 1, bands))

    def _magnitudes(self, pcm: Tensor, length: int) -> Tensor:
        window = self.get_buffer(f"window{length}")
        spectrum = torch.stft(
            pcm, length, length // 4, window=window, center=True, return_complex=True
        )
        power = torch.view_as_real(spectrum).square().sum(dim=-1)
        return (power + 1e-8).sqrt() * (1 / window.sum())

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """[B, T] each -> a scalar."""
        loss = output.new_zeros(())
        for length in _WINDOWS:
            ours, theirs = self._magnitudes(output, length), self._magnitudes(target, length)
            loss = loss + F.l1_loss((ours + _FLOOR).log(), (theirs + _FLOOR).log())
            # Relative to the excerpt's own level, so that quiet speech counts.
            level = theirs.mean(dim=(1, 2), keepdim=True) + 1e-4
            loss = loss + 0.3 * ((ours - theirs).abs() / level).mean()
            if length in _MEL_BANDS:
                filters = self.get_buffer(f"mel{length}")
                ours, theirs = (m.transpose(1, 2) @ filters for m in (ours, theirs))
                loss = loss + _MEL_WEIGHT * F.l1_loss(
                    (ours + _FLOOR).log(), (theirs + _FLOOR).log()
                )
        return loss
