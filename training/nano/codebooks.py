"""Fits codebooks to latents and moves centroids that are no longer chosen."""

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
    # argmin |p - c|^2 = argmax p.c - |c|^2 / 2, for all pairs: [N, dim] x [dim, count].
    offset = -0.5 * centroids.square().sum(dim=-1)
    return torch.addmm(offset, points, centroids.T).argmax(dim=-1)


@torch.no_grad()
def fit_codebooks(mimi: Mimi, latents: Tensor) -> None:
    """Fit each codebook of a group to the residuals of the codebooks before it.

    Args:
        mimi: The codec.
        latents: Latents before the quantiser, [N, dim].
    """
    for group in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
        residual = F.linear(latents, group.input_proj)
        for book in group.centroids:
            book.copy_(k_means(residual, len(book)))
            residual = residual - book[_nearest(residual, book)]
    # The first phase trained the decoder on the acoustic group only. The semantic group starts with
    # a contribution of zero and is learnt from there.
    mimi.quantizer.semantic.output_proj.zero_()


@torch.no_grad()
def restart_dead(
    mimi: Mimi, seen: list[tuple[Tensor, Tensor]], random: np.random.Generator
) -> None:
    """Move centroids that recent batches did not choose to random inputs of the latest batch.

    Args:
        mimi: The codec.
        seen: For each group, the inputs of its codebooks, [codebooks, B, frames, dim], and the
            chosen codes, [B, frames, codebooks].
        random: Chooses the inputs.
    """
    groups: list[ResidualQuantizer] = [mimi.quantizer.semantic, mimi.quantizer.acoustic]
    for group, (residuals, codes) in zip(groups, seen, strict=True):
        for index, book in enumerate(group.centroids):
            counts = torch.bincount(codes[..., index].flatten(), minlength=len(book))
            usage = _recent_usage(group, len(group.centroids), len(book), counts.device)
            usage[index].mul_(0.9).add_(counts)
            dead = (usage[index] < 0.05).nonzero()[:, 0]
            if len(dead):
                points = residuals[index].flatten(0, -2)
                book[dead] = points[torch.from_numpy(random.integers(len(points), size=len(dead)))]
                usage[index][dead] = 1.0


def _recent_usage(group: ResidualQuantizer, books: int, bins: int, device: torch.device) -> Tensor:
    """Decaying count of choices of each code, [books, bins]; a buffer that is not saved."""
    if not hasattr(group, "recent_usage"):
        group.register_buffer(
            "recent_usage", torch.ones(books, bins, device=device), persistent=False
        )
    usage: Tensor = group.get_buffer("recent_usage")
    return usage
