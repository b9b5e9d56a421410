"""The language model's forward pass for training: all positions and all depth steps in parallel.

It uses the engine's modules and parameters. A test compares its logits with the engine's, which
are computed one frame and one codebook at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS, TEXT, USER_CODES, ZERO_TOKEN
from pipecat_personaplex.models.attention import SelfAttention
from pipecat_personaplex.models.config import LMConfig
from pipecat_personaplex.models.depth import DepthLayer, DepthTransformer
from pipecat_personaplex.models.lm import PersonaPlexLM
from training.nano.caller_embedding import CallerEmbedding
from training.nano.parallel_codec import CausalAttention


def new_lm(config: LMConfig) -> PersonaPlexLM:
    """Create a language model with random weights, for training."""
    lm = PersonaPlexLM(config)
    for name, parameter in lm.named_parameters():
        if name.endswith("alpha"):
            nn.init.ones_(parameter)
        elif "emb" in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            deep = config.num_layers if name.startswith("transformer") else 1
            small = name.endswith(("out_proj.weight", "linear_out.weight"))
            nn.init.normal_(parameter, std=(parameter.shape[1] * (deep if small else 1)) ** -0.5)
        parameter.requires_grad_(True)
    return lm


def hidden_states(
    lm: PersonaPlexLM,
    columns: Tensor,
    positions: Tensor,
    callers: CallerEmbedding | None = None,
) -> Tensor:
    """Run the temporal transformer over whole calls.

    Args:
        lm: The language model.
        columns: Input columns, [B, T, 17].
        positions: Their positions, [B, T].
        callers: Embeds the caller's streams in training; None for the model's own tables.

    Returns:
        Normed hidden states, [B, T, dim].
    """
    if callers is None:
        x = _embed(lm, columns)
    else:
        agents = columns.clone()
        agents[..., USER_CODES] = ZERO_TOKEN
        x = _embed(lm, agents) + callers(columns[..., USER_CODES])
    hidden: Tensor = lm(x, positions, CausalAttention(lm.config.window))
    return hidden


def _embed(lm: PersonaPlexLM, columns: Tensor) -> Tensor:
    """``lm.embed`` without a separate vector for each of the 16 audio tokens of a column.

    [B, T, 17] -> [B, T, dim]; a token below 0 contributes zeros.
    """
    tokens = columns.flatten(0, 1)
    given = (tokens >= 0).to(lm.dtype)
    safe = tokens.clamp(min=0)
    audio = F.embedding_bag(
        safe[:, TEXT + 1 :] + lm.audio_offsets,
        lm.audio_emb.weight,
        mode="sum",
        per_sample_weights=given[:, TEXT + 1 :],
    )
    text = F.embedding(safe[:, TEXT], lm.text_emb.weight) * given[:, TEXT, None]
    return (audio + text).view(*columns.shape[:2], -1)


def depth_logits(depth: DepthTransformer, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
    """Logits of all eight depth steps, each conditioned on the codes before it.

    Args:
        depth: The depth transformer.
        hidden: Hidden states, [N, input_dim].
        text: Text tokens of the predicted columns, [N].
        codes: Agent's codes of the predicted columns, [N, 8].

    Returns:
        [8, N, card].
    """
    given = [depth.text_emb(text)]
    given += [table(codes[:, step]) for step, table in enumerate(depth.emb)]
    x = hidden @ _stacked(depth.inputs) + torch.stack(given)  # [8, N, dim]
    for layer in depth.layers:
        assert isinstance(layer, DepthLayer)
        x = x + _attention(layer, layer.norm1(x))
        gate, up = _product(layer.norm2(x), layer, "gating", "linear_in").chunk(2, dim=-1)
        x = x + _product(F.silu(gate) * up, layer, "gating", "linear_out")
    return x @ _stacked(depth.heads)


def _attention(layer: DepthLayer, x: Tensor) -> Tensor:
    steps, count, dim = x.shape
    first = layer.self_attn[0]
    assert isinstance(first, SelfAttention)
    heads = first.num_heads
    qkv = _product(x, layer, "self_attn", "in_proj").view(steps, count, 3, heads, -1)
    q, k, v = qkv.permute(2, 1, 3, 0, 4).unbind(0)  # each [N, H, 8, D]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _product(
        y.permute(2, 0, 1, 3).reshape(steps, count, dim), layer, "self_attn", "out_proj"
    )


def _product(x: Tensor, layer: DepthLayer, part: str, linear: str) -> Tensor:
    """Multiply by each step's own matrix: [8, N, K] -> [8, N, M]."""
    modules = getattr(layer, part)
    return x @ _stacked(getattr(modules[step], linear) for step in range(CODEBOOKS))


def _stacked(linears: Iterable[nn.Module]) -> Tensor:
    return torch.stack([linear.get_parameter("weight").T for linear in linears])
