"""Trains the language model on dialogues that are composed during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.depth import DepthTransformer
from pipecat_personaplex.models.lm import PersonaPlexLM
from training.nano import wordings
from training.nano.caller_embedding import CallerEmbedding, centroid_features
from training.nano.codec import CONFIG as MIMI_CONFIG
from training.nano.codec import load_codec
from training.nano.copying import start_copying
from training.nano.corruption import corrupt_inputs
from training.nano.dialogues import COPIED_WEIGHT, NEW_WORDS, DialogueWriter, Example
from training.nano.parallel_lm import depth_logits, hidden_states, new_lm
from training.nano.pool import Pool
from training.nano.precision import fast_autocast
from training.nano.processes import average, process_group
from training.nano.progress import Clock, StateMissing, load_state, report, save_state
from training.nano.tokenizer import PIECES

LM_CONFIG = LMConfig(
    dim=224,
    num_layers=6,
    num_heads=4,
    hidden_scale=3.0,
    context=512,  # little more than the training's sequences: see README.md, "Long calls"
    text_card=PIECES,
    card=MIMI_CONFIG.bins,
    dep_q=8,
    depformer_dim=96,
    depformer_dim_feedforward=288,
    depformer_num_heads=4,
    depformer_num_layers=2,
)
_SEMANTIC_WEIGHT = 2.0
_ACOUSTIC_WEIGHT = 2.0
_TEXT_WEIGHT = 8.0
_WORD_WEIGHT = 4.0
# Share of a batch's quiet frames that train the depth transformer: they are all alike.
_QUIET_SHARE = 0.06
# Of the frames with words that the script does not fix: there are thousands to learn.
_NEW_SHARE = 0.6
# Text targets of a higher weight are words.
_QUIET_WEIGHT = 0.9
_LOG_EVERY = 20
# Dialogues that measure the understanding of callers outside the training.
_CHECKED = 8


@dataclass(frozen=True)
class LMRun:
    """Time budget, batch sizes and learning rate.

    Attributes:
        minutes: Training time without pauses.
        batch: Dialogues in a step of each process.
        length: Frames of a dialogue.
        peak_rate: Highest learning rate.
        speech_share: Share of the agent's frames of the script's fixed words that train the depth
            transformer. A part is enough: it sees each clip often.
        listening_share: Share of the first batch that holds callers' speech without answers; it
            falls to 0 with the time that is left. Only the loss of the callers' words counts there:
            first the model learns to understand, then to answer.
        speaking_share: Share of a batch in which the agent says given sentences without a caller.
        save_every: Steps between two states.
        seed: Seed of dialogues and sampling.
        compile: Compile the forward passes; needs a C++ compiler on a CPU.
    """

    minutes: float
    batch: int = 8
    length: int = 380
    peak_rate: float = 1.5e-3
    speech_share: float = 0.35
    listening_share: float = 0.0
    speaking_share: float = 0.25
    save_every: int = 50
    seed: int = 0
    compile: bool = False


@dataclass(frozen=True)
class Batch:
    """Examples, stacked along a first dimension [B]; see ``Example``."""

    columns: Tensor
    positions: Tensor
    targets: Tensor
    text_weights: Tensor
    audio_weights: Tensor
    word_ends: Tensor

    @classmethod
    def of(cls, examples: list[Example], device: torch.device) -> Batch:
        """Stack examples of one length."""
        fields = [f.name for f in dataclasses.fields(cls)]
        return cls(
            **{
                name: torch.stack([getattr(example, name) for example in examples]).to(device)
                for name in fields
            }
        )


class WordHead(nn.Linear):
    """Predicts the caller's words from the hidden states.

    Its loss teaches the model to understand the caller word by word, much sooner than the losses
    of the answers do. The checkpoint does not contain the head.
    """

    def __init__(self, dim: int):
        super().__init__(dim, len(wordings.caller_words()))


@dataclass(frozen=True)
class Passes:
    """The two forward passes of training, as they are or compiled."""

    hidden: Callable[[PersonaPlexLM, Tensor, Tensor, CallerEmbedding | None], Tensor] = (
        hidden_states
    )
    depth: Callable[[DepthTransformer, Tensor, Tensor, Tensor], Tensor] = depth_logits

    @classmethod
    def compiled(cls) -> Passes:
        """Compile both: minutes once, then a quarter less time a step on a CPU with AMX."""
        # The number of frames that train the depth transformer differs from batch to batch.
        return cls(torch.compile(hidden_states), torch.compile(depth_logits, dynamic=True))


def losses(
    lm: PersonaPlexLM,
    words: WordHead,
    batch: Batch,
    passes: Passes = Passes(),
    speech_share: float = LMRun.speech_share,
    callers: CallerEmbedding | None = None,
) -> dict[str, Tensor]:
    """The total loss under ``loss``, its parts, and the accuracies of text, words and codes."""
    hidden = passes.hidden(lm, batch.columns, batch.positions, callers)
    text = batch.targets[..., 0]
    counted = batch.text_weights > 0
    weights, words_right = batch.text_weights[counted], text[counted]
    text_logits = lm.text_linear(hidden[counted]).float()
    text_losses = F.cross_entropy(text_logits, words_right, reduction="none")
    # Sequences without answers have no text.
    text_loss = (text_losses * weights).sum() / weights.sum().clamp(min=1)
    ended = batch.word_ends >= 0
    word_logits, word = words(hidden[ended]).float(), batch.word_ends[ended]
    word_loss = F.cross_entropy(word_logits, word)
    audio_weights = batch.audio_weights
    share = torch.where(audio_weights == 1, speech_share, _QUIET_SHARE)
    share = torch.where(audio_weights == NEW_WORDS, _NEW_SHARE, share)
    chosen = (audio_weights > 0) & (torch.rand_like(audio_weights) < share)
    codes = batch.targets[..., 1:][chosen]
    logits = passes.depth(lm.depth, hidden[chosen], text[chosen], codes).float()
    code_targets = codes.T.flatten()
    audio_losses = F.cross_entropy(logits.flatten(0, 1), code_targets, reduction="none")
    per_book = audio_losses.view(len(logits), -1).mean(dim=1)
    semantic, acoustic = per_book[0], per_book[1:].mean()
    with torch.no_grad():
        right = (logits.flatten(0, 1).argmax(dim=-1) == code_targets).float().view(len(logits), -1)
        text_right = text_logits.argmax(dim=-1) == words_right
    return {
        "loss": _TEXT_WEIGHT * text_loss
        + _SEMANTIC_WEIGHT * semantic
        + _ACOUSTIC_WEIGHT * acoustic
        + _WORD_WEIGHT * word_loss,
        "text": text_loss,
        "semantic": semantic,
        "acoustic": acoustic,
        "semantic_right": right[0].mean(),
        "acoustic_right": right[1:].mean(),
        "word_right": (word_logits.argmax(dim=-1) == word).float().mean(),
        "text_right": _share(text_right[weights > _QUIET_WEIGHT]),
        "copied_right": _share(text_right[weights >= COPIED_WEIGHT]),
    }


def _share(true: Tensor) -> Tensor:
    return true.float().sum() / max(1, len(true))


def train_lm(folder: Path, run: LMRun, device: torch.device) -> None:
    """Train the language model or resume a run; appends metrics to ``lm.jsonl``.

    Under ``torchrun``, each process samples its own batches and gradients are averaged in each
    step.
    """
    with process_group() as (rank, count):
        _train(folder, run, device, rank, count)


def _train(folder: Path, run: LMRun, device: torch.device, rank: int, count: int) -> None:
    torch.manual_seed(run.seed)
    pool = Pool.load(folder)
    if not pool.callers:
        raise StateMissing(f"no callers in {folder / 'callers'}: run `clips` first")
    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    config = model_config(pool)
    writer = DialogueWriter(pool, tokenizer, config)
    unseen = DialogueWriter(pool, tokenizer, config, pool.unseen)
    lm = new_lm(config.lm).to(device)
    lm.reset_constants(device)
    words = WordHead(config.lm.dim).to(device)
    mimi = load_codec(folder / "codec.pt", device)
    callers = CallerEmbedding(centroid_features(mimi), config.lm.dim).to(device)
    parts = nn.ModuleDict({"lm": lm, "words": words, "callers": callers})
    optimizer = torch.optim.AdamW(
        parts.parameters(), lr=run.peak_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    clock = Clock(run.minutes * 60)
    step = 0
    if state := load_state(folder / "lm.pt"):
        # A state from a checkpoint lacks parts, and one with a new tokenizer the optimizer's:
        # training starts anew from its weights.
        complete = "callers.linear" in state["parts"]
        parts.load_state_dict(state["parts"], strict=complete)
        if not complete:
            callers.fit(lm)
        if complete and "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
            step, clock.spent = state["step"], state["spent"]
    else:
        start_copying(lm, tokenizer)
    random = np.random.default_rng([run.seed, step, rank])
    torch.manual_seed(int(random.integers(1 << 62)))
    passes = Passes.compiled() if run.compile else Passes()
    sums: dict[str, float] = {}
    while not clock.done:
        rate = run.peak_rate * clock.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        listening = int(run.listening_share * (1 - clock.progress) * run.batch)
        batch = _sample_batch(writer, config, run, listening, random, device)
        with fast_autocast(device):
            metrics = losses(lm, words, batch, passes, run.speech_share, callers)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(metrics["loss"])
        # Before the average: all processes must agree on the time spent, or one ends a step before
        # the others, which then wait for its gradients.
        clock.tick()
        average(parts.parameters(), clock, count)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % run.save_every == 0:
            pool.read_new_callers(folder)
        if rank > 0:
            continue
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item() / _LOG_EVERY
        if step % _LOG_EVERY == 0:
            means = {name: round(total, 4) for name, total in sums.items()}
            report(folder / "lm.jsonl", {"step": step, "seconds": clock.spent, "lr": rate} | means)
            sums = {}
        if step % run.save_every == 0 or clock.done:
            if pool.unseen:
                right = _words_right(lm, words, callers, unseen, run)
                report(folder / "lm.jsonl", {"step": step, "unseen_word_right": right})
            save_state(
                folder / "lm.pt",
                {
                    "parts": parts.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": clock.spent,
                },
            )


@torch.no_grad()
def _words_right(
    lm: PersonaPlexLM,
    words: WordHead,
    callers: CallerEmbedding,
    writer: DialogueWriter,
    run: LMRun,
) -> float:
    """The share of the words of callers outside the training that the head predicts."""
    random = np.random.default_rng(run.seed)
    device = lm.audio_emb.weight.device
    batch = Batch.of([writer.listening(run.length, random) for _ in range(_CHECKED)], device)
    callers.eval()
    hidden = hidden_states(lm, batch.columns, batch.positions, callers)
    callers.train()
    ended = batch.word_ends >= 0
    right: Tensor = words(hidden[ended]).argmax(dim=-1) == batch.word_ends[ended]
    return round(float(right.float().mean()), 4)


def load_lm(path: Path, config: ModelConfig) -> PersonaPlexLM:
    """Load the trained language model for inference."""
    if not (state := load_state(path)):
        raise StateMissing(f"no language model in {path}: run `lm` first")
    parts = state["parts"]
    lm = new_lm(config.lm)
    lm.load_state_dict(_of("lm", parts))
    if weights := _of("callers", parts):
        callers = CallerEmbedding(weights["features"], config.lm.dim)
        callers.load_state_dict(weights)
        callers.write(lm)
    return lm.requires_grad_(False)


def _of(name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {n.removeprefix(prefix): t for n, t in parts.items() if n.startswith(prefix)}


def model_config(pool: Pool) -> ModelConfig:
    """The nano checkpoint's architecture, with its codec's codes of silence and sine."""
    return ModelConfig(
        lm=LM_CONFIG,
        mimi=MIMI_CONFIG,
        silence_codes=tuple(pool.silence),
        sine_codes=tuple(pool.sine),
        dc_blocker=True,
    )


def _sample_batch(
    writer: DialogueWriter,
    config: ModelConfig,
    run: LMRun,
    listening: int,
    random: np.random.Generator,
    device: torch.device,
) -> Batch:
    speaking = round(run.speaking_share * run.batch)
    examples = [
        writer.example(run.length, random, speaking=index < speaking)
        for index in range(run.batch - listening)
    ]
    examples += [writer.listening(run.length, random) for _ in range(listening)]
    for example in examples:
        corrupt_inputs(example, config, random)
    return Batch.of(examples, device)
