"""Losses of the codec: multi-resolution spectral magnitudes, and intelligibility."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import SAMPLE_RATE

# Window lengths in samples: long windows resolve pitch, short ones resolve timing.
_WINDOWS = (1536, 512, 192)
_FLOOR = 1e-3
# Mel bands of the windows that are long enough to resolve them. They have the largest weight:
# intelligibility depends on frequencies below 5 kHz, while most linear bins are above.
_MEL_BANDS = {1536: 64, 512: 32}
_MEL_WEIGHT = 4.0


def mel_filters(bins: int, bands: int) -> Tensor:
    """Triangular filters on the mel scale, [bins, bands]."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, bins)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class SpectralLoss(nn.Module):
    """L1 distance of linear, log and log-mel magnitudes at several window lengths."""

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
        """Both [B, T] -> scalar."""
        loss = output.new_zeros(())
        for length in _WINDOWS:
            ours, theirs = self._magnitudes(output, length), self._magnitudes(target, length)
            loss = loss + F.l1_loss((ours + _FLOOR).log(), (theirs + _FLOOR).log())
            # Relative to the excerpt's level, so that quiet speech has the same weight.
            level = theirs.mean(dim=(1, 2), keepdim=True) + 1e-4
            loss = loss + 0.3 * ((ours - theirs).abs() / level).mean()
            if length in _MEL_BANDS:
                filters = self.get_buffer(f"mel{length}")
                ours, theirs = (m.transpose(1, 2) @ filters for m in (ours, theirs))
                loss = loss + _MEL_WEIGHT * F.l1_loss(
                    (ours + _FLOOR).log(), (theirs + _FLOOR).log()
                )
        return loss


# Constants of the definition of STOI: windows of 25.6 ms, third-octave bands from 150 Hz, segments
# of 30 windows.
_STOI_WINDOW = 616
_STOI_FFT = 1024
_STOI_LOWEST = 150.0
_STOI_BANDS = 15
_STOI_SEGMENT = 30
# A segment more than 40 dB below the loudest one of its excerpt counts as silence.
_STOI_RANGE = 10 ** (-40 / 20)


def third_octaves(bins: int) -> Tensor:
    """Membership of bins in bands, [bins, bands], zero or one."""
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, bins)[:, None]
    centres = _STOI_LOWEST * 2 ** (torch.arange(_STOI_BANDS) / 3)
    return (
        (frequencies >= centres * 2 ** (-1 / 6)) & (frequencies < centres * 2 ** (1 / 6))
    ).float()


class IntelligibilityLoss(nn.Module):
    """One minus the correlation of band envelopes with the target's: STOI without its clipping.

    Source: Taal et al. (2011), here at 24 kHz instead of 10 kHz.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(_STOI_WINDOW))
        self.register_buffer("bands", third_octaves(_STOI_FFT // 2 + 1))

    def _envelopes(self, pcm: Tensor) -> Tensor:
        """[B, T] -> [B, bands, segments, 30]."""
        spectrum = torch.stft(
            pcm,
            _STOI_FFT,
            _STOI_WINDOW // 2,
            _STOI_WINDOW,
            window=self.get_buffer("window"),
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).square().sum(dim=-1)  # [B, bins, windows]
        energy = power.transpose(1, 2) @ self.get_buffer("bands")
        return (energy + 1e-6).sqrt().transpose(1, 2).unfold(2, _STOI_SEGMENT, 4)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Both [B, T] -> scalar between 0 and 2."""
        ours, theirs = self._envelopes(output), self._envelopes(target)
        level = theirs.square().sum(dim=(1, 3)).sqrt()  # [B, segments]
        speech = level > level.amax(dim=1, keepdim=True).clamp(min=1.0) * _STOI_RANGE
        ours, theirs = (x - x.mean(dim=-1, keepdim=True) for x in (ours, theirs))
        norms = ours.norm(dim=-1) * theirs.norm(dim=-1)
        correlation = (ours * theirs).sum(dim=-1) / (norms + 1e-4)  # [B, bands, segments]
        mask = speech[:, None].expand_as(correlation)
        loss: Tensor = 1 - (correlation * mask).sum() / mask.sum().clamp(min=1)
        return loss
