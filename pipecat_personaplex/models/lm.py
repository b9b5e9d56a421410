"""The language model: embeddings of 17 streams, temporal transformer, text head, depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS, TEXT
from pipecat_personaplex.models.attention import (
    KVStore,
    offer_rotation,
    rotary_frequencies,
    rotation,
)
from pipecat_personaplex.models.config import LMConfig
from pipecat_personaplex.models.depth import DepthTransformer
from pipecat_personaplex.models.layers import RMSNorm, project
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.temporal import TemporalTransformer


class PersonaPlexLM(nn.Module):
    """PersonaPlex's language model, with no state of its own.

    Architecture and names follow the released checkpoint (see ``engine.checkpoint`` for the
    mapping). Token -1 embeds to exactly zero in every stream.
    """

    frequencies: Tensor
    audio_offsets: Tensor

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        audio_rows = config.card + 1
        self.text_emb = nn.Embedding(config.text_card + 1, config.dim)
        # The 16 audio tables stand in one, so that a frame is one gather.
        self.audio_emb = nn.Embedding(2 * CODEBOOKS * audio_rows, config.dim)
        self.transformer = TemporalTransformer(
            config.dim, config.num_heads, config.num_layers, config.hidden
        )
        self.out_norm = RMSNorm(config.dim)
        self.text_linear = Linear(config.dim, config.text_card, quantizable=False)
        self.depth = DepthTransformer(
            dim=config.depformer_dim,
            num_heads=config.depformer_num_heads,
            num_layers=config.depformer_num_layers,
            hidden=config.depformer_hidden,
            input_dim=config.dim,
            text_card=config.text_card,
            card=config.card,
        )
        self.reset_constants("cpu")

    def reset_constants(self, device: torch.device | str) -> None:
        """Make what the checkpoint does not hold: rotary frequencies and table offsets."""
        config, device = self.config, torch.device(device)
        with device:
            self.register_buffer(
                "frequencies",
                rotary_frequencies(config.dim // config.num_heads, config.max_period, device),
                persistent=False,
            )
            self.register_buffer(
                "audio_offsets",
                torch.arange(2 * CODEBOOKS) * (config.card + 1),
                persistent=False,
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.text_emb.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Sum the 17 streams' embeddings: [..., 17] int64 -> [..., dim]."""
        given = tokens >= 0
        safe = tokens.clamp(min=0)
        audio = F.embedding(safe[..., TEXT + 1 :] + self.audio_offsets, self.audio_emb.weight)
        audio = audio * given[..., TEXT + 1 :, None]
        text = F.embedding(safe[..., TEXT], self.text_emb.weight) * given[..., TEXT, None]
        return audio.sum(dim=-2) + text

    def forward(self, x: Tensor, positions: Tensor, kv: KVStore, last_only: bool = False) -> Tensor:
        """Run the temporal transformer.

        Args:
            x: Input embeddings, [B, T, dim].
            positions: Of each input, [B, T] int64.
            kv: The past, and where to add to it.
            last_only: Spare the last layer what only the last position's output does not need.

        Returns:
            The normed hidden states, [B, T, dim] or [B, 1, dim]; they feed both heads.
        """
        turn = offer_rotation(rotation(positions, self.frequencies), kv)
        y: Tensor = self.out_norm(self.transformer(x, kv, turn, last_only))
        return y

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[B, dim] -> float32 [B, text_card]."""
        return project(self.text_linear, hidden).float()
