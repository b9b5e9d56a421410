"""What the language model hears of the caller: embeddings computed from the codec's centroids.

With a free table, each of the 8 x 512 codes of the caller's streams is learnt by itself, and a
voice that combines the codes in new ways is not understood. Computed from the centroids, codes of
similar sounds have similar embeddings from the start, and features of whole calls can be varied at
random. The checkpoint contains the computed tables.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

_HIDDEN = 64
# Random variation in training, in multiples of the features' spread: of a call's voice and line
# (offset and scale of each feature), and of each frame.
_CALL_OFFSET = 0.3
_CALL_SCALE = 0.15
_FRAME_NOISE = 0.4


def centroid_features(mimi: Mimi) -> Tensor:
    """The centroids of the eight codebooks, each with mean 0 and spread 1: [8, card, D]."""
    quantizer = mimi.quantizer
    vectors = torch.cat([quantizer.semantic.centroids, quantizer.acoustic.centroids]).detach()
    centred = vectors - vectors.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=(1, 2), keepdim=True).sqrt()


class CallerEmbedding(nn.Module):
    """Embeds the caller's codes by a linear map and a small network for each codebook.

    Args:
        features: Features of each code, [8, card, D].
        dim: Width of the language model.
    """

    features: Tensor

    def __init__(self, features: Tensor, dim: int):
        super().__init__()
        books, _, size = features.shape
        self.register_buffer("features", features)
        self.linear = nn.Parameter(torch.randn(books, size, dim) * 0.1 * size**-0.5)
        self.hidden = nn.Parameter(torch.randn(books, size, _HIDDEN) * size**-0.5)
        self.out = nn.Parameter(torch.randn(books, _HIDDEN, dim) * 0.1 * _HIDDEN**-0.5)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed the codes of calls; in training mode with random variations.

        Args:
            codes: [B, T, 8]; a token below 0 and the token before a stream's begin add nothing.

        Returns:
            The sums over the streams, [B, T, dim].
        """
        books, card, _ = self.features.shape
        given = ((codes >= 0) & (codes < card))[..., None]
        x = self.features[torch.arange(books, device=codes.device), codes.clamp(0, card - 1)]
        x = (_varied(x) if self.training else x) * given
        raw = torch.einsum("btkd,kdh->btkh", x, self.hidden)
        return x.flatten(2) @ self.linear.flatten(0, 1) + F.gelu(raw).flatten(2) @ self.out.flatten(
            0, 1
        )

    @torch.no_grad()
    def fit(self, lm: PersonaPlexLM) -> None:
        """Start with the linear maps that come closest to a model's tables."""
        tables = _caller_tables(lm)[:, :-1]
        self.linear.copy_(torch.linalg.lstsq(self.features, tables).solution)
        self.out.zero_()

    @torch.no_grad()
    def write(self, lm: PersonaPlexLM) -> None:
        """Write the embeddings of all codes, without variations, into a model's tables."""
        tables = _caller_tables(lm)
        raw = F.gelu(self.features @ self.hidden)
        tables[:, :-1] = self.features @ self.linear + raw @ self.out
        tables[:, -1] = 0


def _varied(x: Tensor) -> Tensor:
    """Features of calls [B, T, 8, D] as if other callers had spoken."""
    call = x[:, :1]  # [B, 1, 8, D]
    x = x * (1 + _CALL_SCALE * torch.randn_like(call)) + _CALL_OFFSET * torch.randn_like(call)
    return x + _FRAME_NOISE * torch.rand_like(call[..., :1, :1]) * torch.randn_like(x)


def _caller_tables(lm: PersonaPlexLM) -> Tensor:
    """The tables of the caller's streams, a view of [8, card + 1, dim]."""
    weight = lm.audio_emb.weight
    return weight.view(2 * CODEBOOKS, -1, weight.shape[1])[CODEBOOKS:]
