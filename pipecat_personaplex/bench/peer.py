"""PyPI ``moshi`` as a peer: the same architecture, random weights, one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.bench.calls import (
    Served,
    load_served,
    new_runner,
    noise_prefix,
    start,
    stepping,
)
from pipecat_personaplex.bench.options import BenchOptions, Fill
from pipecat_personaplex.bench.timing import timed
from pipecat_personaplex.constants import CODEBOOKS, DELAYS, FRAME_SAMPLES
from pipecat_personaplex.models.config import ModelConfig

_ROUNDS = 5
# The first calls compile moshi's norms and capture its CUDA graphs.
_START_UP = 4


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
    """One caller on PyPI moshi, run as moshi's server runs it: encode, step, decode.

    On CUDA, that is with its own CUDA graphs and compiled norms. What a step costs does not
    depend on how much of the ring is filled: moshi attends to all of it under a mask.

    Args:
        config: The architecture.
        device: Where to run.
        dtype: Of the language model.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype):
        from moshi.models import loaders
        from moshi.models.lm import LMGen

        self._device = device
        with torch.no_grad(), _attention_as_it_comes():
            lm = loaders.get_moshi_lm(None, peer_lm_kwargs(config), device, dtype).eval()
            self._mimi = loaders.get_mimi(None, peer_mimi_config(config), device, CODEBOOKS)
            self._gen = LMGen(lm)
            self._mimi.streaming_forever(1)
            self._gen.streaming_forever(1)
        self._pcm = torch.zeros(FRAME_SAMPLES)
        for _ in range(_START_UP):
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """One frame: audio from the host, and audio and the text token back to it."""
        with _attention_as_it_comes():
            codes = self._mimi.encode(self._pcm.to(self._device)[None, None])
            tokens = self._gen.step(codes)
            if tokens is not None:
                self._mimi.decode(tokens[:, 1:]).cpu()
                tokens[0, 0, 0].item()


@contextmanager
def _attention_as_it_comes() -> Iterator[None]:
    """With all of PyTorch's ways to attend, some of which ``prepare_device`` turns off."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def measure_peer(
    served: Served,
    options: BenchOptions,
    fill: Fill,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """One session a frame, audio in to audio out: ours, on a CPU ours in int8, and moshi.

    They take turns, so that whatever else the machine does meets them alike. What is wrong inside
    moshi is reported in place of its figures: ours are not to be lost.
    """
    contenders: dict[str, Callable[[], object]] = {}

    def add(name: str, ours: Served) -> None:
        runner = new_runner(ours, 1, device)
        start(runner, 1, noise_prefix(ours, fill.positions, device), fill)
        contenders[name] = stepping(runner, 1)

    add("ours", served)
    if device.type == "cpu" and served.quantization is None:
        add("ours_int8", load_served(options.model, replace(options.engine, quantization="int8")))
    try:
        contenders["moshi"] = PeerCall(served.config, device, served.lm.dtype).step
    except Exception as error:
        logger.opt(exception=error).warning("moshi cannot be run here")
        return {"error": f"{type(error).__name__}: {error}"}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):
        for name, call in contenders.items():
            samples[name] += timed(call, max(1, options.frames // _ROUNDS), device)
    medians = {name: float(np.median(times)) * 1e3 for name, times in samples.items()}
    report: dict[str, Any] = {f"{name}_p50_ms": round(ms, 3) for name, ms in medians.items()}
    for name, ms in medians.items():
        if name == "moshi":
            continue
        report[f"{name}_speedup"] = speedup = round(medians["moshi"] / ms, 2)
        say(
            f"one session a frame: {name} {ms:.2f} ms, PyPI moshi {medians['moshi']:.2f} ms: "
            f"{speedup}x as fast"
        )
    return report
