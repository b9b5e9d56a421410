"""Small models and a pool of random clips, for tests that need no speech."""

from __future__ import annotations

from pathlib import Path

import torch

from pipecat_personaplex.models.config import LMConfig, MimiConfig, ModelConfig
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano import script, wordings
from training.nano.clips import VOICE_SAMPLE_FRAMES
from training.nano.codec import new_codec
from training.nano.given import vocabulary
from training.nano.pool import (
    AgentClip,
    Caller,
    Pool,
    UserClip,
    callers_file,
    save_callers,
)

CARD = 32
CONFIG = ModelConfig(
    lm=LMConfig(
        dim=32,
        num_layers=2,
        num_heads=2,
        hidden_scale=3.0,
        context=1500,
        text_card=320,
        card=CARD,
        dep_q=8,
        depformer_dim=16,
        depformer_dim_feedforward=48,
        depformer_num_heads=2,
        depformer_num_layers=2,
    ),
    mimi=MimiConfig(
        dimension=16,
        n_filters=2,
        ratios=(4, 5, 6, 8),
        num_heads=2,
        num_layers=1,
        dim_feedforward=32,
        context=12,
        codebook_dim=8,
        bins=CARD,
    ),
    silence_codes=(0,) * 8,
    sine_codes=(1,) * 8,
)


class Letters:
    """A tokenizer with one token for each letter and no special tokens."""

    def encode(self, text: str) -> list[int]:
        return [10 + ord(letter) % 300 for letter in text]


def random_codec(path: Path | None = None, device: torch.device | None = None) -> Mimi:
    """A small codec with random weights; takes the arguments of ``load_codec``."""
    mimi = new_codec(CONFIG.mimi)
    for group in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
        torch.nn.init.normal_(group.centroids)
    return mimi


def random_pool(seed: int = 0) -> Pool:
    """Random codes: even and at least 10 for agents, odd for callers, 3 for background."""
    generator = torch.Generator().manual_seed(seed)

    def codes(frames: int, odd: int) -> torch.Tensor:
        values = torch.randint(5, CARD // 2, (frames, 8), generator=generator)
        return (2 * values + odd).to(torch.int16)

    def agent(text: str, copied: list[int]) -> AgentClip:
        words = text.split()
        onsets = [6 * index for index in range(len(words))]
        return AgentClip(text, codes(6 * len(words) + 3, 0), onsets, copied)

    def caller() -> Caller:
        known = wordings.INTENTS
        clips = {
            intent: [UserClip(intent, codes(30, 1), 5, 20, [(12, 1), (20, 2)])] for intent in known
        }
        return Caller(torch.full((100, 8), 3, dtype=torch.int16), clips)

    lines = script.all_lines().items()
    names = ("NATF2", "NATM1")
    return Pool(
        silence=list(CONFIG.silence_codes),
        sine=list(CONFIG.sine_codes),
        voices={name: [codes(VOICE_SAMPLE_FRAMES, 0)] for name in names},
        agent={name: {text: agent(text, line.copied) for text, line in lines} for name in names},
        words={name: {word: agent(f"{word}.", []) for word in vocabulary()} for name in names},
        callers=[caller(), caller()],
    )


def save_pool(pool: Pool, folder: Path) -> None:
    """Write a pool with its callers."""
    pool.save(folder)
    save_callers(callers_file(folder, 0), pool.callers)
