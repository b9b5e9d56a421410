"""Trains the SentencePiece tokenizer of the nano model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece

from training.nano import script, wordings

_PIECES = 800
_PROMPTS = 400
# Byte fallback encodes all other characters; these are included so that it is rarely needed.
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'()$&-<>"


def train_tokenizer(path: Path) -> None:
    """Train on every prompt, wording and answer; ids 0..3 are EPAD (unk), BOS, EOS and PAD."""
    random = np.random.default_rng(0)
    lines = [f"<system> {script.sample_character(random).prompt} <system>" for _ in range(_PROMPTS)]
    lines += [sentence for sentence in script.all_lines() for _ in range(20)]
    lines += [
        wording
        for intent in wordings.INTENTS
        for wording in wordings.wordings(intent, held_out=False)
    ]
    lines += [" ".join(_ALPHABET)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=_PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
