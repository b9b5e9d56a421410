"""Trains only the codec's encoder, so that the same words get similar codes from any caller.

A call encodes only the caller's audio, and never decodes the caller's codes. So these codes need to
hold the words, not the sound. Two heads read the quantised latents. One predicts the phonemes of
each frame, the other, a recurrent network, the word that has just ended. Their losses train the
encoder through the codebooks, on many voices, rooms and lines.

Codebooks and decoder do not change. A further loss keeps the latents of silence as they were. The
agent's voices have an encoder of their own (``decoder.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.models.mimi.quantizer import ResidualQuantizer
from training.nano import wordings
from training.nano.codec import load_codec
from training.nano.encoder_data import MOST_FRAMES, Batch, CallersHeard, phonemes, read_turns
from training.nano.parallel_codec import encode_latents, quantize
from training.nano.precision import fast_autocast
from training.nano.processes import average, process_group
from training.nano.progress import Clock, load_state, report, save_state

_PEAK_RATE = 5e-4
_HEADS_WIDTH = 256
_WEIGHTS = {"sounds": 10.0, "words": 1.0, "keep": 4.0, "commitment": 1.0}
_LOG_EVERY = 50
_CHECKED_BATCHES = 12


@dataclass(frozen=True)
class EncoderRun:
    """Time budget and batch sizes.

    Attributes:
        minutes: Training time without pauses.
        batch: Turns of callers in a step.
        check_every: Steps between two checks with callers outside the training.
        save_every: Steps between two states.
        workers: Processes that prepare batches.
        seed: Seed of microphones and sampling.
    """

    minutes: float
    batch: int = 8
    check_every: int = 500
    save_every: int = 250
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class SilenceKept:
    """What the encoder must keep: the codes of silence, which stand for it in all dialogues.

    Attributes:
        pcm: An excerpt of silence, [1, frames * 1920].
        latents: Its latents before the training, projected for each group, [1, frames, dim].
    """

    pcm: Tensor
    latents: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, mimi: Mimi, device: torch.device) -> SilenceKept:
        """Encode silence."""
        pcm = torch.zeros(1, MOST_FRAMES * FRAME_SAMPLES, device=device)
        return cls(pcm, _projected(mimi, encode_latents(mimi, pcm)))

    def beginning(self, frames: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The first frames, and their latents: the encoder is causal."""
        wanted = tuple(each[:, :frames] for each in self.latents)
        return self.pcm[:, : frames * FRAME_SAMPLES], wanted


def _projected(mimi: Mimi, latents: Tensor) -> tuple[Tensor, ...]:
    """Latents [..., dim] as the semantic and the acoustic codebooks see them, [..., D] each."""
    return tuple(F.linear(latents, group.input_proj) for group in _groups(mimi))


def _groups(mimi: Mimi) -> tuple[ResidualQuantizer, ResidualQuantizer]:
    return mimi.quantizer.semantic, mimi.quantizer.acoustic


class Heads(nn.Module):
    """Predict sounds and words from quantised latents. The checkpoint does not contain them."""

    def __init__(self, codebook_dim: int):
        super().__init__()
        inputs = 2 * codebook_dim
        self.normalise = nn.BatchNorm1d(inputs, affine=False)
        self.sounds = nn.Sequential(
            nn.Linear(inputs, _HEADS_WIDTH),
            nn.GELU(),
            nn.Linear(_HEADS_WIDTH, len(phonemes())),
        )
        self.memory = nn.GRU(inputs, _HEADS_WIDTH, batch_first=True)
        self.words = nn.Linear(_HEADS_WIDTH, len(wordings.caller_words()))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, 2 * codebook_dim] -> logits of phonemes, [B, T, phonemes], and [B, T, words]."""
        x = self.normalise(values.flatten(0, 1)).view_as(values)
        return self.sounds(x), self.words(self.memory(x)[0])


def _encoder_parameters(mimi: Mimi) -> dict[str, nn.Parameter]:
    """The parameters before the codebooks."""
    return {
        name: parameter
        for name, parameter in mimi.named_parameters()
        if name.startswith(("encoder", "downsample")) or name.endswith("input_proj")
    }


def train_encoder(folder: Path, run: EncoderRun, device: torch.device) -> None:
    """Train the encoder or resume a run; appends metrics to ``encoder.jsonl``.

    Under ``torchrun``, each process samples its own batches and gradients are averaged in each
    step.

    Raises:
        StateMissing: There is no codec, or ``speak`` has made no callers.
    """
    with process_group() as (rank, count):
        _train(folder, run, device, rank, count)


def _train(folder: Path, run: EncoderRun, device: torch.device, rank: int, count: int) -> None:
    torch.manual_seed(run.seed)
    training, unseen = read_turns(folder)
    mimi = load_codec(folder / "codec.pt", device)
    kept = SilenceKept.of(mimi, device)
    trained = _encoder_parameters(mimi)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    heads = Heads(mimi.config.codebook_dim).to(device)
    parameters = [*trained.values(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    clock, step = Clock(run.minutes * 60), 0
    if state := load_state(folder / "encoder.pt"):
        mimi.load_state_dict(state["encoder"], strict=False)
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        step, clock.spent = state["step"], state["spent"]
    sums: dict[str, float] = {}
    batches = DataLoader(
        CallersHeard(training, run.batch, (run.seed, step), rank),
        batch_size=None,
        num_workers=run.workers,
    )
    checks = _checked_batches(unseen, run) if rank == 0 else []
    torch.manual_seed(int(np.random.default_rng([run.seed, step, rank]).integers(1 << 62)))
    for batch in batches:
        if clock.done:
            break
        rate = _PEAK_RATE * clock.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = _losses(mimi, kept, heads, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["loss"])
        # Before the average, which makes all processes agree on the time spent.
        clock.tick()
        average(parameters, clock, count)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if rank > 0:
            continue
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / _LOG_EVERY
        if step % run.save_every == 0 or clock.done:
            save_state(
                folder / "encoder.pt",
                {
                    "encoder": {name: p.detach() for name, p in trained.items()},
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": clock.spent,
                },
            )
        if step % _LOG_EVERY == 0:
            row: dict[str, Any] = {"step": step, "seconds": clock.spent, "lr": rate}
            row |= {name: round(total, 4) for name, total in sums.items()}
            sums = {}
            if checks and step % run.check_every == 0:
                row |= _check(mimi, heads, checks)
            report(folder / "encoder.jsonl", row)


def _checked_batches(unseen: list[dict[str, Any]], run: EncoderRun) -> list[Batch]:
    random = np.random.default_rng(3)
    callers = CallersHeard(unseen, run.batch)
    return [callers.batch(random) for _ in range(_CHECKED_BATCHES)] if unseen else []


@torch.no_grad()
def _check(mimi: Mimi, heads: Heads, batches: list[Batch]) -> dict[str, float]:
    """The losses and the share of right words with callers outside the training."""
    device = heads.words.weight.device
    heads.eval()
    rows = [
        _heard(mimi, heads, encode_latents(mimi, batch.pcm.to(device)), batch) for batch in batches
    ]
    heads.train()
    return {
        f"unseen_{name}": round(sum(row[name].item() for row in rows) / len(rows), 4)
        for name in ("sounds", "words", "word_right")
    }


def _losses(mimi: Mimi, kept: SilenceKept, heads: Heads, batch: Batch) -> dict[str, Tensor]:
    """The total under ``loss``, its parts, and the share of right words."""
    pcm = batch.pcm.to(kept.pcm.device)
    before, wanted = kept.beginning(batch.word_ends.shape[1])
    with fast_autocast(pcm.device):
        latents = encode_latents(mimi, torch.cat((pcm, before)))
    latents = latents.float()
    parts = _heard(mimi, heads, latents[: len(pcm)], batch)
    distances = [
        # Relative to the spread of centroids: that of the latents is 0 in silence.
        F.mse_loss(now, then) / group.centroids[0].var()
        for now, then, group in zip(
            _projected(mimi, latents[len(pcm) :]), wanted, _groups(mimi), strict=True
        )
    ]
    parts["keep"] = torch.stack(distances).mean()
    loss = torch.stack([weight * parts[name] for name, weight in _WEIGHTS.items()]).sum()
    return {"loss": loss} | parts


def _heard(mimi: Mimi, heads: Heads, latents: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Losses of callers' latents [B, frames, dim], and the share of right words."""
    inner, commitment = [], []
    for group, exact in zip(_groups(mimi), _projected(mimi, latents), strict=True):
        found = quantize(group, latents)
        # Straight-through gradient: what the heads want of the centroids goes to the latents.
        inner.append(exact + (found.inner - exact).detach())
        # Relative to the centroids, not to the latents: these would grow beyond all centroids.
        commitment.append(F.mse_loss(exact, found.inner.detach()) / group.centroids[0].var())
    sound_logits, word_logits = heads(torch.cat(inner, dim=-1))
    word_ends = batch.word_ends.to(latents.device)
    ended = word_ends >= 0
    logits, word = word_logits[ended], word_ends[ended]
    return {
        "sounds": F.binary_cross_entropy_with_logits(sound_logits, batch.sounds.to(latents.device)),
        "words": F.cross_entropy(logits, word),
        "commitment": torch.stack(commitment).mean(),
        "word_right": (logits.argmax(dim=-1) == word).float().mean(),
    }
