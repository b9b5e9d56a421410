"""Codebooks fit their inputs, learn, and move centroids that are not chosen. The codec's losses."""

from __future__ import annotations

import numpy as np
import torch
from pystoi import stoi

from pipecat_personaplex.constants import SAMPLE_RATE
from tests.training.models import CONFIG
from training.nano.codebooks import fit_codebooks, k_means, restart_dead
from training.nano.codec import new_codec
from training.nano.codec_loss import IntelligibilityLoss, SpectralLoss
from training.nano.espeak import speaker
from training.nano.parallel_codec import quantize
from training.nano.voices import CLEAR_VOICES

CLEAR = CLEAR_VOICES["woman"]


def test_k_means_finds_separate_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 200, 2)).flatten(0, 1)
    found = k_means(points, 12)
    nearest = torch.cdist(centres, found).amin(dim=1)
    assert (nearest < 0.5).all()
    assert (torch.cdist(points, found).amin(dim=1) < 0.6).all()


def test_fitted_codebooks_have_small_residuals_and_gradients() -> None:
    torch.manual_seed(0)
    mimi = new_codec(CONFIG.mimi)
    latents = torch.randn(600, CONFIG.mimi.dimension)
    fit_codebooks(mimi, latents)
    group = mimi.quantizer.acoustic
    result = quantize(group, latents[None])
    inputs = latents @ group.input_proj.T
    assert (inputs - result.inner[0]).var() < 0.15 * inputs.var()

    # The engine's encoder chooses the same codes.
    group.reset_constants()
    assert torch.equal(group.encode(latents), result.codes[0])

    latents.requires_grad_(True)
    result = quantize(group, latents[None])
    (result.values.sum() + result.loss).backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0, "straight-through gradient"
    assert group.centroids.grad is not None and group.centroids.grad.abs().sum() > 0


def test_centroids_that_are_never_chosen_move_to_inputs() -> None:
    torch.manual_seed(0)
    mimi = new_codec(CONFIG.mimi)
    latents = torch.randn(1, 64, CONFIG.mimi.dimension)
    with torch.no_grad():
        for group in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
            group.centroids.fill_(1000)
            group.centroids[:, 0] = 0
    groups = (mimi.quantizer.semantic, mimi.quantizer.acoustic)
    for _ in range(40):
        seen = [(r.residuals, r.codes) for r in (quantize(g, latents) for g in groups)]
        restart_dead(mimi, seen, np.random.default_rng(0))
    assert (mimi.quantizer.semantic.centroids < 1000).all()
    assert len(quantize(mimi.quantizer.semantic, latents).codes.unique()) > 8


def test_spectral_loss_depends_on_pitch_more_than_on_phase() -> None:
    time = torch.arange(24_000) / 24_000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)[None]
    shifted = 0.3 * torch.sin(2 * torch.pi * 440 * time + 1)[None]
    other = 0.3 * torch.sin(2 * torch.pi * 700 * time)[None]
    loss = SpectralLoss()
    same, late, wrong = (loss(tone, each).item() for each in (tone, shifted, other))
    assert same == 0
    # The remaining loss of a phase shift comes from the edges of the excerpt.
    assert late < 0.3 * wrong


def test_intelligibility_is_close_to_stoi() -> None:
    random = np.random.default_rng(0)
    clean = speaker().say("The quick river runs under an old stone bridge.", CLEAR).pcm
    loss = IntelligibilityLoss()
    target = torch.from_numpy(clean)[None]
    assert loss(target, target) < 0.01
    noise = random.standard_normal(len(clean)).astype(np.float32) * float(np.std(clean))
    for share in (0.1, 0.4, 1.0):
        noisy = clean + share * noise
        expected = stoi(clean, noisy, SAMPLE_RATE)
        found = 1 - float(loss(torch.from_numpy(noisy)[None], target))
        assert abs(found - expected) < 0.1
