"""The language model: embeddings, temporal transformer, text head and depth transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.constants import CODEBOOKS, TEXT
from pipecat_personaplex.models.attention import (
    KVStore,
    offer_rotation,
    rotary_frequencies,
    rotation,
)
from pipecat_personaplex.models.config import LMConfig
from pipecat_personaplex.models.depth import DepthTransformer
from pipecat_personaplex.models.layers import RMSNorm, embedding_table, project
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.module import Module
from pipecat_personaplex.models.temporal import TemporalTransformer


class PersonaPlexLM(Module):
    """PersonaPlex's language model. It holds weights only; streaming state is an argument.

    The architecture is that of the released checkpoint ``nvidia/personaplex-7b-v1``;
    ``checkpoint.layout`` maps the checkpoint's tensors to these modules. Token -1 embeds to exactly
    zero in every stream.
    """

    frequencies: Tensor
    audio_offsets: Tensor

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        audio_rows = config.card + 1
        self.text_emb = embedding_table(config.text_card + 1, config.dim)
        # The 16 audio tables are concatenated, so that embedding a frame is one gather.
        self.audio_emb = embedding_table(2 * CODEBOOKS * audio_rows, config.dim)
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
        """Create the constants that a checkpoint does not contain, on ``device``."""
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
        """Type of the activations."""
        return self.text_emb.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Sum the 17 streams' embeddings: [..., 17] int64 -> [..., dim]."""
        is_token = tokens >= 0
        safe = tokens.clamp(min=0)  # -1 gathers row 0, which the mask then zeroes
        # [..., 16, dim]: stream i reads its table at offset i * (card + 1).
        audio = F.embedding(safe[..., TEXT + 1 :] + self.audio_offsets, self.audio_emb.weight)
        audio = audio * is_token[..., TEXT + 1 :, None]
        text = F.embedding(safe[..., TEXT], self.text_emb.weight) * is_token[..., TEXT, None]
        return audio.sum(dim=-2) + text

    def forward(self, x: Tensor, positions: Tensor, kv: KVStore, last_only: bool = False) -> Tensor:
        """Run the temporal transformer.

        Args:
            x: Input embeddings, [B, T, dim].
            positions: Position of each input, [B, T] int64.
            kv: Stored keys and values; those of ``x`` are added.
            last_only: In the last layer, compute the last position only.

        Returns:
            Normed hidden states, [B, T, dim], or with ``last_only`` [B, 1, dim]. They are the input
            of the text head and of the depth transformer.
        """
        rotary = offer_rotation(rotation(positions, self.frequencies), kv)
        y: Tensor = self.out_norm(self.transformer(x, kv, rotary, last_only))
        return y

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, dim] -> float32 [B, text_card]."""
        return project(self.text_linear, hidden).float()
