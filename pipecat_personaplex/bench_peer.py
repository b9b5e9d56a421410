"""PyPI ``moshi`` as a peer: the same architecture, random weights, one call."""

from __future__ import annotations

from typing import Any

import torch

from pipecat_personaplex.architecture import ModelConfig
from pipecat_personaplex.config import CODEBOOKS, DELAYS, FRAME_SAMPLES
from pipecat_personaplex.errors import ConfigError


def peer_lm_kwargs(config: ModelConfig) -> dict[str, Any]:
    """Our language model's architecture in moshi's words.

    Its ring is exact, so its context is our window.
    """
    lm = config.lm
    return {
        "dim": lm.dim,
        "text_card": lm.text_card,
        "existing_text_padding_id": 3,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": lm.card,
        "num_heads": lm.num_heads,
        "num_layers": lm.num_layers,
        "hidden_scale": lm.hidden_scale,
        "causal": True,
        "layer_scale": None,
        "context": lm.window,
        "max_period": lm.max_period,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": lm.depformer_dim,
        "depformer_dim_feedforward": lm.depformer_dim_feedforward,
        "depformer_num_heads": lm.depformer_num_heads,
        "depformer_num_layers": lm.depformer_num_layers,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": list(DELAYS),
    }


def peer_mimi_config(config: ModelConfig) -> dict[str, Any]:
    """Our codec's architecture in moshi's words, with as many codebooks as are used."""
    mimi = config.mimi
    return {
        "sample_rate": 24_000,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": {
            "channels": 1,
            "dimension": mimi.dimension,
            "causal": True,
            "n_filters": mimi.n_filters,
            "n_residual_layers": 1,
            "activation": "ELU",
            "compress": mimi.compress,
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "kernel_size": mimi.kernel_size,
            "residual_kernel_size": mimi.residual_kernel_size,
            "last_kernel_size": mimi.last_kernel_size,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": list(mimi.ratios),
            "true_skip": True,
        },
        "quantizer": {
            "dimension": mimi.codebook_dim,
            "n_q": CODEBOOKS,
            "bins": mimi.bins,
            "input_dimension": mimi.dimension,
            "output_dimension": mimi.dimension,
        },
        "transformer": {
            "d_model": mimi.dimension,
            "num_heads": mimi.num_heads,
            "num_layers": mimi.num_layers,
            "causal": True,
            "layer_scale": 0.01,
            "context": mimi.window,
            "conv_layout": True,
            "max_period": mimi.max_period,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": mimi.dim_feedforward,
            "input_dimension": mimi.dimension,
            "output_dimensions": [mimi.dimension],
        },
    }


class PeerCall:
    """One caller on PyPI moshi: encode, step, decode.

    Args:
        config: The architecture.
        device: Where to run.
        dtype: Of the language model.
        filled: Frames the call has had before it is timed.

    Raises:
        ConfigError: moshi is not installed.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, filled: int):
        try:
            from moshi.models import loaders
            from moshi.models.lm import LMGen
        except ImportError as error:
            raise ConfigError(
                "--peer needs PyPI moshi: pip install --no-deps moshi==0.2.13 einops"
            ) from error
        lm = loaders.get_moshi_lm(None, peer_lm_kwargs(config), device, dtype).eval()
        self._mimi = loaders.get_mimi(None, peer_mimi_config(config), device, CODEBOOKS)
        self._gen = LMGen(lm)
        self._pcm = torch.zeros(1, 1, FRAME_SAMPLES, device=device)
        self._mimi.streaming_forever(1)
        self._gen.streaming_forever(1)
        # What it costs does not depend on how much of the ring is filled: moshi attends to all
        # of it under a mask. A few frames pass its start-up.
        for _ in range(min(filled, 4)):
            self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """One frame."""
        codes = self._mimi.encode(self._pcm)
        tokens = self._gen.step(codes)
        if tokens is not None:
            self._mimi.decode(tokens[:, 1:])
