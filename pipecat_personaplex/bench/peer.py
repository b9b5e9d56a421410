"""Comparison with ``moshi`` from PyPI: same architecture, random weights, one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.bench.measurements import BenchOptions, Echo, Fill
from pipecat_personaplex.bench.models import LoadedModel, load_model
from pipecat_personaplex.bench.timing import time_calls
from pipecat_personaplex.bench.workload import (
    new_runner,
    noise_prefix,
    start_sessions,
    step_call,
)
from pipecat_personaplex.constants import CODEBOOKS, DELAYS, FRAME_SAMPLES, SAMPLE_RATE, TEXT_PAD
from pipecat_personaplex.models.config import ModelConfig

_ROUNDS = 5
# Untimed steps of a round: another program has run since the last one.
_WARM_UP = 2
# Untimed steps at first, which compile moshi's norms and capture its CUDA graphs.
_START_UP = 4


def peer_lm_kwargs(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments that give moshi's language model this architecture.

    moshi's ring holds exactly its context, so its context is this package's window.
    """
    lm = config.lm
    return {
        "dim": lm.dim,
        "text_card": lm.text_card,
        "existing_text_padding_id": TEXT_PAD,
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
    """Return the arguments that give moshi's codec this architecture, with the 8 codebooks used."""
    mimi = config.mimi
    return {
        "sample_rate": SAMPLE_RATE,
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


class PeerSession:
    """One session on PyPI moshi, run as moshi's server runs it: encode, step, decode.

    On CUDA it uses moshi's own CUDA graphs and compiled norms. The cost of a step does not depend
    on how much of the ring is filled: moshi attends to the whole ring under a mask.

    Args:
        config: The architecture.
        device: The device to run on.
        dtype: Data type of the language model.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype):
        from moshi.models import loaders
        from moshi.models.lm import LMGen

        self._device = device
        with torch.no_grad(), _all_attention_backends():
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
        """Run one frame: copy audio to the device, and audio and the text token back."""
        with _all_attention_backends():
            codes = self._mimi.encode(self._pcm.to(self._device)[None, None])
            tokens = self._gen.step(codes)
            if tokens is not None:
                self._mimi.decode(tokens[:, 1:]).cpu()
                tokens[0, 0, 0].item()


@contextmanager
def _all_attention_backends() -> Iterator[None]:
    """Allow all of PyTorch's attention backends; ``prepare_device`` disables cuDNN's."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def measure_peer(
    model: LoadedModel, options: BenchOptions, fill: Fill, echo: Echo
) -> dict[str, Any]:
    """Time one session, audio in to audio out: this package, on a CPU also in int8, and moshi.

    The contenders alternate, so that other load on the machine affects them alike. If moshi
    fails, its error is reported in place of the times, and the rest of the report is not lost. Each
    contender gets ``options.frames`` steps, or as many as ``options.max_seconds`` have room for.
    """
    device = model.device
    contenders: dict[str, Callable[[], object]] = {}

    def add(name: str, contender: LoadedModel) -> None:
        runner = new_runner(contender, 1)
        start_sessions(runner, 1, noise_prefix(contender, fill.positions), fill)
        contenders[name] = step_call(runner, 1)

    add("ours", model)
    if device.type == "cpu" and model.quantization is None:
        add("ours_int8", load_model(options.model, replace(options.engine, quantization="int8")))
    try:
        contenders["moshi"] = PeerSession(model.config, device, model.lm.dtype).step
    except Exception as error:
        logger.opt(exception=error).warning("moshi cannot be run here")
        return {"error": f"{type(error).__name__}: {error}"}
    frames = {name: _frames(call, options, device) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):
        for name, call in contenders.items():
            if len(samples[name]) >= frames[name]:
                continue  # a slow one has fewer rounds
            times = max(1, frames[name] // _ROUNDS)
            samples[name] += time_calls(call, times, device, warm_up=min(_WARM_UP, times))
    medians = {name: float(np.median(times)) * 1e3 for name, times in samples.items()}
    report: dict[str, Any] = {f"{name}_p50_ms": round(ms, 3) for name, ms in medians.items()}
    report["frames"] = {name: len(times) for name, times in samples.items()}
    if min(frames.values()) < options.frames:
        echo(f"at most {options.max_seconds:g} s for each program: frames {report['frames']}")
    for name, ms in medians.items():
        if name == "moshi":
            continue
        report[f"{name}_speedup"] = speedup = round(medians["moshi"] / ms, 2)
        echo(
            f"one session a frame: {name} {ms:.2f} ms, PyPI moshi {medians['moshi']:.2f} ms: "
            f"{speedup}x as fast"
        )
    return report


def _frames(call: Callable[[], object], options: BenchOptions, device: torch.device) -> int:
    """Steps of one contender that its time has room for, including those of the warm-up."""
    [seconds] = time_calls(call, 1, device, warm_up=1)
    fitting = int(options.max_seconds / seconds) - _ROUNDS * _WARM_UP
    return max(1, min(options.frames, fitting))
