"""Trains only the codec's encoder, to keep what callers say apart from who says it, and where.

In a call, only the caller is encoded. Codebooks and decoder do not change, so the codes of the
agent's sentences stay as they are: for the agent's voices and for silence, the encoder must return
the latents that it returned before. For callers it need not return their audio at all. Two heads
read the quantised latents: one predicts the sounds of the words, frame by frame, the other, a
recurrent network, the word that has just ended. Their losses train the encoder, through the
codebooks, to hear the same in any voice, room and line.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano import wordings
from training.nano.caller_turns import load_turns
from training.nano.codec import load_codec
from training.nano.codec_data import Phonemes, add_at
from training.nano.espeak import Manner, Utterance, speaker
from training.nano.material import sentence
from training.nano.microphone import Microphone, block_dc
from training.nano.parallel_codec import encode_latents, quantize
from training.nano.pool import measures_training
from training.nano.progress import Clock, load_state, report, save_state
from training.nano.recordings import Recording
from training.nano.turns import Turn
from training.nano.voices import AGENT_VOICES

_PEAK_RATE = 5e-4
_HEADS_WIDTH = 256
_LEAD_SECONDS = (0.1, 0.7)
_TAIL_SECONDS = 0.4
_SILENT_SHARE = 0.1  # share of the agent's excerpts that are silent
_LONGEST_SECONDS = 4.6  # of a turn; longer ones are left out
_SOUND_WEIGHT, _WORD_WEIGHT, _KEEP_WEIGHT, _COMMITMENT_WEIGHT = 10.0, 1.0, 4.0, 0.5
_ACCENT = "en-us"
_NOTHING = "_"  # no phoneme
_LOG_EVERY = 50
_CHECKED_BATCHES = 12


@dataclass(frozen=True)
class EncoderRun:
    """Time budget and batch sizes.

    Attributes:
        minutes: Training time without pauses.
        batch: Callers' turns in a step.
        agents: Excerpts of the agent in a step.
        check_every: Steps between two checks with callers outside the training.
        save_every: Steps between two states.
        workers: Processes that prepare batches.
        seed: Seed of microphones and sampling.
    """

    minutes: float
    batch: int = 8
    agents: int = 2
    check_every: int = 500
    save_every: int = 250
    workers: int = 1
    seed: int = 0


@cache
def _phonemes() -> Phonemes:
    """The phonemes of all callers' words, in one accent, whatever the caller's."""
    words = wordings.caller_words()
    return Phonemes(sorted({name for word in words for name, _ in _pronounced(word)}))


@cache
def _pronounced(word: str) -> tuple[tuple[str, float], ...]:
    """A word's phonemes, each with its onset as a share of the word's duration."""
    spoken = speaker().say(word, Manner(_ACCENT))
    named = [(name, onset) for name, onset in spoken.phonemes if not name.startswith("_")]
    first = named[0][1] if named else 0.0
    return tuple((name, (onset - first) / (spoken.seconds - first)) for name, onset in named)


def _utterance(turn: Turn) -> Utterance:
    """A turn with phonemes: those of each word as espeak-ng times them, stretched to the word."""
    phonemes: list[tuple[str, float]] = []
    begin = 0.0
    for word, end in turn.words:
        if turn.pause is not None and begin < turn.pause[1] <= end:
            begin = turn.pause[1]
        pronounced = _pronounced(wordings.bare(word))
        phonemes += [(name, begin + onset * (end - begin)) for name, onset in pronounced]
        phonemes.append((_NOTHING, end))
        begin = end
    return Utterance("", turn.pcm, (), tuple(phonemes))


@dataclass(frozen=True)
class Batch:
    """Callers' turns through microphones, and excerpts of the agent.

    Attributes:
        pcm: Callers, [B, frames * 1920].
        sounds: The phonemes of each frame, [B, frames, phonemes]; see ``Phonemes``.
        word_ends: The word that has just ended in each frame, [B, frames]; -1 for none.
        agents: The agent's voices and silence, [A, frames * 1920].
    """

    pcm: Tensor
    sounds: Tensor
    word_ends: Tensor
    agents: Tensor


class CallersHeard(IterableDataset[Batch]):
    """Batches without end.

    Args:
        turns: Rows of ``caller_turns``.
        run: Batch sizes and seed.
        step: Batches that came before, in earlier runs.
    """

    def __init__(self, turns: list[dict[str, Any]], run: EncoderRun, step: int = 0):
        self._turns = sorted(turns, key=lambda row: len(row["pcm"]))
        self._run, self._step = run, step
        self._words = {word: index for index, word in enumerate(wordings.caller_words())}

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        random = np.random.default_rng([self._run.seed, self._step, worker.id if worker else 0])
        while True:
            yield self.batch(random)

    def batch(self, random: np.random.Generator) -> Batch:
        """Sample turns of similar lengths, so that little of a batch is padding."""
        near = 12 * self._run.batch
        first = int(random.integers(max(1, len(self._turns) - near)))
        some = random.integers(first, min(len(self._turns), first + near), self._run.batch)
        recordings = [Recording.of(self._turns[int(index)]) for index in some]
        leads = random.uniform(*_LEAD_SECONDS, len(recordings))
        longest = max(
            lead + len(each.turn.pcm) / SAMPLE_RATE
            for lead, each in zip(leads, recordings, strict=True)
        )
        frames = int((longest + _TAIL_SECONDS) / FRAME_SECONDS)
        pcm = np.zeros((len(recordings), frames * FRAME_SAMPLES), np.float32)
        word_ends = torch.full((len(recordings), frames), -1)
        sounds = []
        for row, (lead, recording) in enumerate(zip(leads, recordings, strict=True)):
            pcm[row] = self._heard(recording, lead, frames, random)
            sounds.append(_phonemes().targets(_utterance(recording.turn), lead, frames))
            for word, end in recording.turn.words:
                index = self._words.get(wordings.bare(word))
                frame = -int(-(lead + end) // FRAME_SECONDS)
                if index is not None and frame < frames:
                    word_ends[row, frame] = index
        agents = np.stack([_agent(frames, random) for _ in range(self._run.agents)])
        return Batch(
            torch.from_numpy(pcm),
            torch.stack(sounds),
            word_ends,
            torch.from_numpy(agents),
        )

    @staticmethod
    def _heard(
        recording: Recording, lead: float, frames: int, random: np.random.Generator
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        speech = recording.turn.pcm
        track = np.zeros(frames * FRAME_SAMPLES, np.float32)
        add_at(speech, track, int(lead * SAMPLE_RATE))
        return block_dc(Microphone.sample(random).record(track, speech, random))


def _agent(frames: int, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A sentence in one of the agent's voices, or silence."""
    track = np.zeros(frames * FRAME_SAMPLES, np.float32)
    if random.random() < _SILENT_SHARE:
        return track
    manner = list(AGENT_VOICES.values())[int(random.integers(len(AGENT_VOICES)))]
    lead = int(random.integers(0, frames // 2)) * FRAME_SAMPLES
    add_at(speaker().say(sentence(random), manner).pcm, track, lead)
    return track


class Heads(nn.Module):
    """Predict sounds and words from quantised latents. The checkpoint does not contain them."""

    def __init__(self, codebook_dim: int):
        super().__init__()
        inputs = 2 * codebook_dim
        self.normalise = nn.BatchNorm1d(inputs, affine=False)
        self.sounds = nn.Sequential(
            nn.Linear(inputs, _HEADS_WIDTH),
            nn.GELU(),
            nn.Linear(_HEADS_WIDTH, len(_phonemes())),
        )
        self.memory = nn.GRU(inputs, _HEADS_WIDTH, batch_first=True)
        self.words = nn.Linear(_HEADS_WIDTH, len(wordings.caller_words()))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, 2 * codebook_dim] -> logits of phonemes, [B, T, phonemes], and [B, T, words]."""
        x = self.normalise(values.flatten(0, 1)).view_as(values)
        return self.sounds(x), self.words(self.memory(x)[0])


def encoder_parameters(mimi: Mimi) -> dict[str, nn.Parameter]:
    """The parameters before the codebooks."""
    return {
        name: parameter
        for name, parameter in mimi.named_parameters()
        if name.startswith(("encoder", "downsample")) or name.endswith("input_proj")
    }


def train_encoder(folder: Path, run: EncoderRun, device: torch.device) -> None:
    """Train the encoder or resume a run; appends metrics to ``encoder.jsonl``."""
    torch.manual_seed(run.seed)
    # Silence produces denormal numbers, which are slow on a CPU.
    torch.set_flush_denormal(True)
    training, unseen = _turns(folder)
    before = load_codec(folder / "codec.pt", device)
    mimi = copy.deepcopy(before)
    mimi.reset_constants(device)
    trained = encoder_parameters(mimi)
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
        CallersHeard(training, run, step), batch_size=None, num_workers=run.workers
    )
    checks = CallersHeard(unseen, run)
    for batch in batches:
        if clock.done:
            break
        rate = _PEAK_RATE * clock.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = _losses(mimi, before, heads, batch, device)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["loss"])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.tick()
        step += 1
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
            if unseen and step % run.check_every == 0:
                row |= check(mimi, before, heads, checks, device)
            report(folder / "encoder.jsonl", row)


@torch.no_grad()
def check(
    mimi: Mimi, before: Mimi, heads: Heads, callers: CallersHeard, device: torch.device
) -> dict[str, float]:
    """The losses and shares of right words with callers outside the training."""
    random = np.random.default_rng(3)
    heads.eval()
    rows = [
        _losses(mimi, before, heads, callers.batch(random), device) for _ in range(_CHECKED_BATCHES)
    ]
    heads.train()
    return {
        f"unseen_{name}": round(sum(row[name].item() for row in rows) / len(rows), 4)
        for name in ("sounds", "words", "word_right")
    }


def _turns(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The turns for training, and those of callers that measure it."""
    training: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    for path in sorted((folder / "turns").glob("*.pt")):
        for caller in load_turns(path):
            short = [r for r in caller if len(r["pcm"]) < _LONGEST_SECONDS * SAMPLE_RATE]
            (unseen if measures_training(path) else training).extend(short)
    if not training:
        raise FileNotFoundError(f"no turns of callers in {folder / 'turns'}: run `speak` first")
    return training, unseen


def _losses(
    mimi: Mimi, before: Mimi, heads: Heads, batch: Batch, device: torch.device
) -> dict[str, Tensor]:
    """The total under ``loss``, its parts, and the share of right words."""
    pcm, agents = batch.pcm.to(device), batch.agents.to(device)
    # Without AMX, bfloat16 is slower than float32 on a CPU.
    fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        latents = encode_latents(mimi, torch.cat((pcm, agents)))
        with torch.no_grad():
            wanted = encode_latents(before, agents).float()
    latents = latents.float()
    heard, kept = latents[: len(pcm)], latents[len(pcm) :]
    groups = (mimi.quantizer.semantic, mimi.quantizer.acoustic)
    inner, commitment = [], []
    for group in groups:
        found = quantize(group, heard)
        exact = F.linear(heard, group.input_proj)
        # Straight-through gradient: what the heads want of the centroids goes to the latents.
        inner.append(exact + (found.inner - exact).detach())
        commitment.append(found.loss)
    sound_logits, word_logits = heads(torch.cat(inner, dim=-1))
    sounds = F.binary_cross_entropy_with_logits(sound_logits, batch.sounds.to(device))
    ended = batch.word_ends >= 0
    chosen, word = word_logits[ended.to(device)], batch.word_ends[ended].to(device)
    words = F.cross_entropy(chosen, word)
    keep = torch.stack(
        [
            F.mse_loss(F.linear(kept, new.input_proj), F.linear(wanted, old.input_proj))
            # Relative to the spread of centroids: that of the latents is 0 in silence.
            / old.centroids[0].var()
            for new, old in zip(
                groups, (before.quantizer.semantic, before.quantizer.acoustic), strict=True
            )
        ]
    ).mean()
    vq = torch.stack(commitment).mean()
    return {
        "loss": _SOUND_WEIGHT * sounds
        + _WORD_WEIGHT * words
        + _KEEP_WEIGHT * keep
        + _COMMITMENT_WEIGHT * vq,
        "sounds": sounds,
        "words": words,
        "keep": keep,
        "vq": vq,
        "word_right": (chosen.argmax(dim=-1) == word).float().mean(),
    }
