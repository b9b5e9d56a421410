"""Split residual vector quantiser: one semantic codebook and seven acoustic ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS


class ResidualQuantizer(nn.Module):
    """A group of codebooks, each quantising what the ones before it left over.

    Args:
        codebooks: How many.
        bins: Codes a codebook.
        dim: Of a centroid.
        latent_dim: Of the codec's latents, projected in and out.
    """

    handicaps: Tensor

    def __init__(self, codebooks: int, bins: int, dim: int, latent_dim: int):
        super().__init__()
        self.centroids = nn.Parameter(torch.empty(codebooks, bins, dim), requires_grad=False)
        self.input_proj = nn.Parameter(torch.empty(dim, latent_dim), requires_grad=False)
        self.output_proj = nn.Parameter(torch.empty(latent_dim, dim), requires_grad=False)

    def reset_constants(self) -> None:
        """Make what ``encode`` needs beside the centroids: minus half their squared norms."""
        self.register_buffer(
            "handicaps", -0.5 * self.centroids.square().sum(dim=-1), persistent=False
        )

    def encode(self, latent: Tensor) -> Tensor:
        """[B, latent_dim] -> codes [B, codebooks]: the nearest centroid in L2."""
        residual = F.linear(latent, self.input_proj)
        codes = []
        for centroids, handicap in zip(self.centroids, self.handicaps, strict=True):
            # The nearest centroid has the largest x . c - |c|^2 / 2.
            code = torch.addmm(handicap, residual, centroids.T).argmax(dim=-1)
            residual = residual - F.embedding(code, centroids)
            codes.append(code)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, codebooks] -> [B, latent_dim]."""
        total = F.embedding(codes[:, 0], self.centroids[0])
        for index in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, index], self.centroids[index])
        return F.linear(total, self.output_proj)


class SplitQuantizer(nn.Module):
    """Both groups quantise the same latent; decoding adds them."""

    def __init__(self, bins: int, dim: int, latent_dim: int):
        super().__init__()
        self.semantic = ResidualQuantizer(1, bins, dim, latent_dim)
        self.acoustic = ResidualQuantizer(CODEBOOKS - 1, bins, dim, latent_dim)

    def encode(self, latent: Tensor) -> Tensor:
        """[B, latent_dim] -> [B, 8] int64."""
        return torch.cat((self.semantic.encode(latent), self.acoustic.encode(latent)), dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, 8] int64 -> [B, latent_dim]."""
        return self.semantic.decode(codes[:, :1]) + self.acoustic.decode(codes[:, 1:])
