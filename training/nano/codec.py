"""Trains the codec in two phases; the second starts from the result of the first.

1. ``autoencoder``: without a quantiser. Noise on the projected latents simulates the quantisation
   error, so that the latents use no more information than 7 codebooks of 9 bits can hold.
2. ``quantizer``: codebooks are fitted to the latents by k-means, then all parts train together.

``decoder.py`` then trains the decoder, with an encoder of the agent's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
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
from training.nano.codec_quality import held_out_speech, mean_stoi, through_codec
from training.nano.parallel_codec import decode_latents, encode_latents, quantize
from training.nano.progress import Clock, StateMissing, load_state, report, save_state

Phase = Literal["autoencoder", "quantizer"]

CONFIG = MimiConfig(
    dimension=128,
    n_filters=16,
    # Encoder strides are the reverse: the longest comes first, which halves the work at 24 kHz.
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
# Learning rate of the centroids in multiples of the others: latents have a spread of about 14.
_CENTROID_RATE = 40.0
_PEAK_RATE = {"autoencoder": 1e-3, "quantizer": 5e-4}


@dataclass(frozen=True)
class CodecRun:
    """Time budget and batch sizes of one phase."""

    phase: Phase
    minutes: float
    batch: int = 4
    frames: int = 20
    clear_sentences: int = 600
    users: int = 140
    check_every: int = 500
    save_every: int = 250
    seed: int = 0


class PhonemeHead(nn.Module):
    """Predicts a frame's phonemes from the semantic codebook only.

    Its loss makes that codebook encode phonemes. The checkpoint does not contain the head.
    """

    def __init__(self, dim: int, phonemes: int):
        super().__init__()
        self.linear = nn.Linear(dim, phonemes)

    def forward(self, values: Tensor, target: Tensor) -> Tensor:
        """[B, frames, dim], [B, frames, phonemes] -> a scalar."""
        logits = self.linear(values)
        return F.binary_cross_entropy_with_logits(logits, target) * 20


def new_codec(config: MimiConfig = CONFIG) -> Mimi:
    """Create a codec with random weights, for training."""
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
            # Each output of a transposed convolution sums two taps, for every stride.
            fan_in = parameter.shape[-1] * (2 if ".ups." in name else 1)
            nn.init.normal_(parameter, std=fan_in**-0.5)
        parameter.requires_grad_(True)
    mimi.reset_constants("cpu")
    return mimi


def load_codec(path: Path, device: torch.device) -> Mimi:
    """Load the trained codec for inference.

    Raises:
        StateMissing: ``path`` does not exist.
    """
    if not (state := load_state(path)):
        raise StateMissing(f"no codec in {path}: run `codec` or `adopt` first")
    mimi = new_codec()
    prefix = "mimi."
    mimi.load_state_dict(
        {n.removeprefix(prefix): t for n, t in state["parts"].items() if n.startswith(prefix)}
    )
    mimi.requires_grad_(False).to(device)
    mimi.reset_constants(device)
    return mimi


def load_finished(folder: Path, device: torch.device) -> Mimi:
    """Load the codec of the checkpoint: the callers' encoder and the agent's decoder."""
    mimi = load_codec(folder / "codec.pt", device)
    for part in ("encoder", "decoder"):
        if state := load_state(folder / f"{part}.pt"):
            mimi.load_state_dict(state[part], strict=False)
    return mimi


def train_codec(folder: Path, run: CodecRun, device: torch.device) -> None:
    """Run or resume one phase; appends metrics to ``codec.jsonl``."""
    torch.manual_seed(run.seed)
    data = CodecData(run.clear_sentences, run.users, run.seed)
    phase = _PhaseTraining(run, len(data.phonemes), device)
    clock = Clock(run.minutes * 60)
    resumed = phase.restore(load_state(folder / "codec.pt"), clock)
    random = np.random.default_rng([run.seed, phase.step])
    if run.phase == "quantizer" and not resumed:
        fit_codebooks(phase.mimi, _latents(phase.mimi, data, run, random, device))
    checked = held_out_speech()
    while not clock.done:
        rate = _PEAK_RATE[run.phase] * clock.rate_factor(phase.step)
        losses = phase.learn(data.batch(random, run.batch, run.frames), rate)
        clock.tick()
        if run.phase == "quantizer" and phase.step % _RESTART_EVERY == 0:
            restart_dead(phase.mimi, phase.seen, random)
        if phase.step % run.save_every == 0 or clock.done:
            save_state(folder / "codec.pt", phase.state(clock))
        if phase.step % _LOG_EVERY == 0 or clock.done:
            row: dict[str, object] = {"phase": run.phase, "step": phase.step, "lr": rate}
            row |= {"seconds": clock.spent}
            row |= {name: value.item() for name, value in losses.items()}
            if phase.step % run.check_every == 0 or clock.done:
                phase.mimi.reset_constants(device)
                quantized = run.phase != "autoencoder"
                codec = partial(through_codec, phase.mimi, device=device, quantized=quantized)
                row |= mean_stoi(checked, codec)
            report(folder / "codec.jsonl", row)


def _groups(parts: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups by learning rate; centroids must follow latents that move quickly."""
    fast: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parts.named_parameters():
        if parameter.requires_grad:
            (fast if name.endswith("centroids") else others).append(parameter)
    groups = ({"params": fast, "factor": _CENTROID_RATE}, {"params": others, "factor": 1.0})
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
    """Models, optimizer and losses of one phase."""

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
        # For each group of codebooks, inputs and chosen codes of the last batch.
        self.seen: list[tuple[Tensor, Tensor]] = []

    def restore(self, state: dict[str, Any], clock: Clock) -> bool:
        """Restore a state; returns whether it is of the same phase, which then resumes."""
        if not state:
            return False
        # A state that was created from a checkpoint has no phase and no head.
        self._parts.load_state_dict(state["parts"], strict="phase" in state)
        if state.get("phase") != self._run.phase:
            return False
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, clock.spent = state["step"], state["spent"]
        return True

    def state(self, clock: Clock) -> dict[str, Any]:
        """The state for ``restore``."""
        return {
            "phase": self._run.phase,
            "parts": self._parts.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "spent": clock.spent,
        }

    def learn(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """Do one training step; returns the losses."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        losses = self._losses(batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["loss"])
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self.step += 1
        return losses

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The total under ``loss``, and its parts."""
        pcm, phonemes = batch.pcm.to(self._device), batch.phonemes.to(self._device)
        latents = encode_latents(self.mimi, pcm)
        losses: dict[str, Tensor] = {}
        if self._run.phase == "autoencoder":
            values, semantic = self._unquantized(latents)
        else:
            values, semantic = self._quantized(latents, losses)
        output = decode_latents(self.mimi, values)
        losses["spectral"] = self._spectral(output, pcm)
        losses["wave"] = _WAVE_WEIGHT * F.l1_loss(output, pcm)
        losses["phonemes"] = self._head(semantic, phonemes)
        return {"loss": torch.stack(list(losses.values())).sum()} | losses

    def _unquantized(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        quantizer = self.mimi.quantizer
        inner = F.linear(latents, quantizer.acoustic.input_proj)
        spread = inner.detach().std(dim=(0, 1))
        noisy = inner + _LATENT_NOISE * spread * torch.randn_like(inner)
        return (
            F.linear(noisy, quantizer.acoustic.output_proj),
            F.linear(latents, quantizer.semantic.input_proj),
        )

    def _quantized(self, latents: Tensor, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        quantizer = self.mimi.quantizer
        first = quantize(quantizer.semantic, latents)
        rest = quantize(quantizer.acoustic, latents)
        self.seen = [(first.residuals, first.codes), (rest.residuals, rest.codes)]
        losses["vq"] = first.loss + rest.loss
        # Straight-through gradient: encoder and centroids both learn from the phoneme loss.
        soft = F.linear(latents, quantizer.semantic.input_proj)
        return first.values + rest.values, first.inner + soft - soft.detach()
