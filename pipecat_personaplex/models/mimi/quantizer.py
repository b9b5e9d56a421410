"""Split residual vector quantiser: one semantic codebook and seven acoustic ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.models.module import Module


class ResidualQuantizer(Module):
    """A group of codebooks, each of which quantises the residual of the previous ones.

    Args:
        codebooks: Number of codebooks.
        bins: Codes per codebook.
        dim: Dimension of a centroid.
        latent_dim: Dimension of the codec's latents, which are projected in and out.
    """

    distance_bias: Tensor

    def __init__(self, codebooks: int, bins: int, dim: int, latent_dim: int):
        super().__init__()
        self.centroids = nn.Parameter(torch.empty(codebooks, bins, dim), requires_grad=False)
        self.input_proj = nn.Parameter(torch.empty(dim, latent_dim), requires_grad=False)
        self.output_proj = nn.Parameter(torch.empty(latent_dim, dim), requires_grad=False)

    def reset_constants(self) -> None:
        """Compute what ``encode`` adds to the products: minus half the centroids' squared norms."""
        bias = self.centroids.new_empty(self.centroids.shape[:-1])
        if not bias.is_meta:
            bias.copy_(-0.5 * self.centroids.square().sum(dim=-1))
        self.register_buffer("distance_bias", bias, persistent=False)

    def encode(self, latent: Tensor) -> Tensor:
        """[B, latent_dim] -> codes [B, codebooks] int64: the nearest centroids by L2 distance."""
        residual = F.linear(latent, self.input_proj)
        codes = []
        for centroids, bias in zip(self.centroids, self.distance_bias, strict=True):
            # argmin |x - c|^2 is argmax x . c - |c|^2 / 2: [B, dim] -> [B, bins] -> [B].
            code = torch.addmm(bias, residual, centroids.T).argmax(dim=-1)
            residual = residual - F.embedding(code, centroids)
            codes.append(code)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, codebooks] -> [B, latent_dim]."""
        total = F.embedding(codes[:, 0], self.centroids[0])
        for index in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, index], self.centroids[index])
        return F.linear(total, self.output_proj)


class SplitQuantizer(Module):
    """Semantic and acoustic codebooks quantise the same latent; decoding adds the results."""

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
