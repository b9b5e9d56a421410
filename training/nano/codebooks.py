"""Codebooks fitted to latents, and kept in use."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.models.mimi.quantizer import ResidualQuantizer

_ITERATIONS = 12


def k_means(points: Tensor, count: int) -> Tensor:
    """Centroids [count, dim] of points [N, dim]; an empty cluster takes a random point."""
    centroids = points[torch.randperm(len(points))[:count]].clone()
    for _ in range(_ITERATIONS):
        nearest = _nearest(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=count)
        fresh = points[torch.randint(len(points), (count,))]
        means = sums / counts.clamp(min=1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, fresh)
    return centroids


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    handicap = -0.5 * centroids.square().sum(dim=-1)
    return torch.addmm(handicap, points, centroids.T).argmax(dim=-1)


@torch.no_grad()
def fit_codebooks(mimi: Mimi, latents: Tensor) -> None:
    """Fit each codebook to what those before it leave of latents [N, dim]."""
    for group in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
        residual = F.linear(latents, group.input_proj)
        for book in group.centroids:
            book.copy_(k_means(residual, len(book)))
            residual = residual - book[_nearest(residual, book)]
    # Until now the acoustic group alone was heard; the semantic one comes in by learning.
    mimi.quantizer.semantic.output_proj.zero_()


@torch.no_grad()
def restart_dead(
    mimi: Mimi, seen: list[tuple[Tensor, Tensor]], random: np.random.Generator
) -> None:
    """Move codes that a recent batch never chose, some at a time, to where its inputs are.

    Args:
        mimi: The codec.
        seen: Of each group, residuals [codebooks, B, frames, dim] and codes [B, frames, codebooks].
        random: Draws the inputs.
    """
    groups: list[ResidualQuantizer] = [mimi.quantizer.semantic, mimi.quantizer.acoustic]
    for group, (residuals, codes) in zip(groups, seen, strict=True):
        for index, book in enumerate(group.centroids):
            counts = torch.bincount(codes[..., index].flatten(), minlength=len(book))
            group_use = _use(group, len(group.centroids), len(book), counts.device)
            group_use[index].mul_(0.9).add_(counts)
            dead = (group_use[index] < 0.05).nonzero()[:, 0]
            if len(dead):
                points = residuals[index].flatten(0, -2)
                book[dead] = points[torch.from_numpy(random.integers(len(points), size=len(dead)))]
                group_use[index][dead] = 1.0


def _use(group: ResidualQuantizer, books: int, bins: int, device: torch.device) -> Tensor:
    """How often each code was lately chosen, kept with the group but in no checkpoint."""
    if not hasattr(group, "recent_use"):
        group.register_buffer(
            "recent_use", torch.ones(books, bins, device=device), persistent=False
        )
    use: Tensor = group.get_buffer("recent_use")
    return use
