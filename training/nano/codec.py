"""Train the codec, in two phases, the second from the first one's result.

1. ``autoencoder``: no quantiser; noise on the projected latents stands in for its error, so that
   they spread their information over what 7 x 9 bits can hold.
2. ``quantizer``: codebooks fitted to the latents by k-means, then everything learns together.

``decoder.py`` goes on with the decoder alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.config import MimiConfig
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.codebooks import fit_codebooks, restart_dead
from training.nano.codec_data import Batch, CodecData
from training.nano.codec_loss import SpectralLoss
from training.nano.codec_quality import CodecCheck
from training.nano.parallel_codec import decode_latents, encode_latents, quantize
from training.nano.progress import Clock, load_state, report, save_state

Phase = Literal["autoencoder", "quantizer"]

CONFIG = MimiConfig(
    dimension=128,
    n_filters=16,
    # The long strides first: half the work at 24 kHz is spared.
    ratios=(4, 5, 6, 8),
    num_heads=4,
    num_layers=2,
    dim_feedforward=384,
    context=64,
    codebook_dim=32,
    bins=512,
)
_LATENT_NOISE = 0.25
_WAVE_WEIGHT = 2.0
_RESTART_EVERY = 50
_LOG_EVERY = 100
# The trained latents vary by about 14.
_CENTROID_PACE = 40.0
_PEAK_RATE = {"autoencoder": 1e-3, "quantizer": 5e-4}


@dataclass(frozen=True)
class CodecRun:
    """One phase's budget and batches."""

    phase: Phase
    minutes: float
    batch: int = 4
    frames: int = 20
    agent_sentences: int = 600
    users: int = 140
    check_every: int = 500
    save_every: int = 250
    seed: int = 0


class PhonemeHead(nn.Module):
    """Reads a frame's phonemes from the semantic codebook alone, and so fills it with them."""

    def __init__(self, dim: int, phonemes: int):
        super().__init__()
        self.linear = nn.Linear(dim, phonemes)

    def forward(self, values: Tensor, target: Tensor) -> Tensor:
        """[B, frames, dim], [B, frames, phonemes] -> a scalar."""
        logits = self.linear(values)
        return F.binary_cross_entropy_with_logits(logits, target) * 20


def new_codec(config: MimiConfig = CONFIG) -> Mimi:
    """A codec to train, with random weights."""
    mimi = Mimi(config)
    for name, parameter in mimi.named_parameters():
        if ".scale" in name:
            nn.init.constant_(parameter, 0.2)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name == "upsample.weight":
            nn.init.constant_(parameter, 0.7)
        else:
            # A transposed convolution's output sums two taps whatever its stride.
            fan_in = parameter.shape[-1] * (2 if ".ups." in name else 1)
            nn.init.normal_(parameter, std=fan_in**-0.5)
        parameter.requires_grad_(True)
    mimi.reset_constants("cpu")
    return mimi


def load_codec(path: Path, device: torch.device) -> Mimi:
    """The trained codec, for use."""
    state = load_state(path)
    mimi = new_codec()
    prefix = "mimi."
    mimi.load_state_dict(
        {n.removeprefix(prefix): t for n, t in state["parts"].items() if n.startswith(prefix)}
    )
    mimi.requires_grad_(False).to(device)
    mimi.reset_constants(device)
    return mimi


def train_codec(folder: Path, run: CodecRun, device: torch.device) -> None:
    """Run one phase, or what is left of it; progress goes to ``codec.jsonl``."""
    torch.manual_seed(run.seed)
    # Silent excerpts make numbers so small that a CPU handles them slowly.
    torch.set_flush_denormal(True)
    data = CodecData(run.agent_sentences, run.users, run.seed)
    phase = _PhaseTraining(run, len(data.phonemes), device)
    clock = Clock(run.minutes * 60)
    resumed = phase.restore(load_state(folder / "codec.pt"), clock)
    random = np.random.default_rng([run.seed, phase.step])
    if run.phase == "quantizer" and not resumed:
        fit_codebooks(phase.mimi, _latents(phase.mimi, data, run, random, device))
    check = CodecCheck()
    while not clock.done:
        rate = _PEAK_RATE[run.phase] * clock.rate_factor(phase.step)
        figures = phase.learn(data.batch(random, run.batch, run.frames), rate)
        clock.tick()
        if run.phase == "quantizer" and phase.step % _RESTART_EVERY == 0:
            restart_dead(phase.mimi, phase.seen, random)
        if phase.step % run.save_every == 0 or clock.done:
            save_state(folder / "codec.pt", phase.state(clock))
        if phase.step % _LOG_EVERY == 0 or clock.done:
            row: dict[str, object] = {"phase": run.phase, "step": phase.step, "lr": rate}
            row |= {"seconds": clock.spent}
            row |= {name: value.item() for name, value in figures.items()}
            if phase.step % run.check_every == 0 or clock.done:
                phase.mimi.reset_constants(device)
                row |= check(phase.mimi, device, quantized=run.phase != "autoencoder")
            report(folder / "codec.jsonl", row)


def _groups(parts: nn.Module) -> list[dict[str, Any]]:
    """Parameters by pace: centroids must keep up with the latents that they stand for."""
    fast: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parts.named_parameters():
        if parameter.requires_grad:
            (fast if name.endswith("centroids") else others).append(parameter)
    groups = ({"params": fast, "factor": _CENTROID_PACE}, {"params": others, "factor": 1.0})
    return [group for group in groups if group["params"]]


def _latents(
    mimi: Mimi, data: CodecData, run: CodecRun, random: np.random.Generator, device: torch.device
) -> Tensor:
    """Latents of many excerpts, [N, dim]."""

    def parts() -> Iterator[Tensor]:
        for _ in range(120):
            batch = data.batch(random, run.batch, run.frames)
            yield encode_latents(mimi, batch.pcm.to(device)).flatten(0, 1)

    with torch.no_grad():
        return torch.cat(list(parts()))


class _PhaseTraining:
    """The models, the optimizer and the losses of one phase."""

    def __init__(self, run: CodecRun, phonemes: int, device: torch.device):
        self._run, self._device = run, device
        self.mimi = new_codec().to(device)
        self._head = PhonemeHead(CONFIG.codebook_dim, phonemes).to(device)
        self._parts = nn.ModuleDict({"mimi": self.mimi, "head": self._head})
        self._trained = [p for p in self._parts.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            _groups(self._parts), lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-3
        )
        self._spectral = SpectralLoss().to(device)
        self.step = 0
        # Of each group of codebooks in the last batch: what they were given and what they chose.
        self.seen: list[tuple[Tensor, Tensor]] = []

    def restore(self, state: dict[str, Any], clock: Clock) -> bool:
        """Take over a state; whether it is one of this very phase, which then goes on."""
        if not state:
            return False
        # A state that was made from a checkpoint has no phase and no head.
        self._parts.load_state_dict(state["parts"], strict="phase" in state)
        if state.get("phase") != self._run.phase:
            return False
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, clock.spent = state["step"], state["spent"]
        return True

    def state(self, clock: Clock) -> dict[str, Any]:
        """What ``restore`` takes."""
        return {
            "phase": self._run.phase,
            "parts": self._parts.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "spent": clock.spent,
        }

    def learn(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """One step; returns the losses."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        figures = self._losses(batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(figures["loss"])
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self.step += 1
        return figures

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The total under ``loss``, and its parts."""
        pcm, phonemes = batch.pcm.to(self._device), batch.phonemes.to(self._device)
        latents = encode_latents(self.mimi, pcm)
        figures: dict[str, Tensor] = {}
        if self._run.phase == "autoencoder":
            values, semantic = self._unquantized(latents)
        else:
            values, semantic = self._quantized(latents, figures)
        output = decode_latents(self.mimi, values)
        figures["spectral"] = self._spectral(output, pcm)
        figures["wave"] = _WAVE_WEIGHT * F.l1_loss(output, pcm)
        figures["phonemes"] = self._head(semantic, phonemes)
        return {"loss": torch.stack(list(figures.values())).sum()} | figures

    def _unquantized(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        quantizer = self.mimi.quantizer
        inner = F.linear(latents, quantizer.acoustic.input_proj)
        spread = inner.detach().std(dim=(0, 1))
        noisy = inner + _LATENT_NOISE * spread * torch.randn_like(inner)
        return (
            F.linear(noisy, quantizer.acoustic.output_proj),
            F.linear(latents, quantizer.semantic.input_proj),
        )

    def _quantized(self, latents: Tensor, figures: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        quantizer = self.mimi.quantizer
        first = quantize(quantizer.semantic, latents)
        rest = quantize(quantizer.acoustic, latents)
        self.seen = [(first.residuals, first.codes), (rest.residuals, rest.codes)]
        figures["vq"] = first.loss + rest.loss
        # Straight through, so that the encoder learns phonemes as well as the centroids.
        soft = F.linear(latents, quantizer.semantic.input_proj)
        return first.values + rest.values, first.inner + soft - soft.detach()
