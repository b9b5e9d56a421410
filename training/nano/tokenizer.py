"""The SentencePiece tokenizer of the nano model, and a language model's way to another one.

Each word that the agent says or reads is one token: a small model copies one token from its prompt
surely and five badly, and it speaks one word in the frames of one token.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from training.nano import script, wordings
from training.nano.agent_speech import other_texts
from training.nano.copying import SPACE, word_rows
from training.nano.facts import FACTS, IN_BRACKETS
from training.nano.material import WORDS
from training.nano.progress import StateMissing, load_state, save_state

PIECES = 3200
_PROMPTS = 3000
_OTHERS = 4000
_HOUSE_NUMBERS = 100
# Byte fallback encodes all other characters; these are included so that it is rarely needed.
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'()$&-<>"
# The tables of a language model that have a row for each token.
_TABLES = ("lm.text_emb.weight", "lm.text_linear.weight", "lm.depth.text_emb.weight")


def _texts() -> list[str]:
    random = np.random.default_rng(0)
    return [
        *(script.sample_character(random).prompt for _ in range(_PROMPTS)),
        *script.all_lines(),
        *other_texts(_OTHERS),
        *WORDS,
        *map(str.capitalize, WORDS),
    ]


def _known_pieces(texts: list[str]) -> list[str]:
    """All words of the texts, and the parts of prices and times as prompts write them."""
    words = {word for text in texts for word in re.findall(r"[A-Za-z]{3,}", text)}
    numbers = {str(number) for number in range(_HOUSE_NUMBERS)}
    inside: set[str] = set()
    for fact, values in FACTS.items():
        for value in values:
            first = value.written.split()[0]
            if amount := re.match(r"(\$?\d+)([.:]\d\d)?", first):
                first = amount[1]
                numbers.add(first)
                if amount[2]:
                    inside.add(amount[2])
            if fact in IN_BRACKETS:
                inside.add(first)
    return sorted(SPACE + each for each in words | numbers) + sorted(inside)


def train_tokenizer(path: Path) -> None:
    """Train on all that the agent says and reads; ids 0..3 are EPAD (unk), BOS, EOS and PAD."""
    texts = _texts()
    lines = [
        *texts,
        *(w for intent in wordings.INTENTS for w in wordings.wordings(intent, held_out=False)),
        "<system> <system>",
        _ALPHABET,
        " ".join(_ALPHABET),
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        user_defined_symbols=_known_pieces(texts),
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


def replace_tokenizer(folder: Path) -> None:
    """Train the tokenizer anew and give the language model's state a row for each new token.

    A token's row is the mean of those of the same characters' tokens before, or that of
    ``copying``. To be run when the script has new words, and after ``adopt``.

    Args:
        folder: Folder of the training states, with the old tokenizer.

    Raises:
        StateMissing: There is no tokenizer or no language model.
    """
    path = folder / "tokenizer.model"
    if not (state := load_state(folder / "lm.pt")) or not path.exists():
        raise StateMissing(f"no {path} with an lm.pt to carry over: run `adopt` first")
    old = sentencepiece.SentencePieceProcessor(str(path))
    train_tokenizer(path)
    new = sentencepiece.SentencePieceProcessor(str(path))
    before = [_before(new.id_to_piece(number), old) for number in range(new.vocab_size())]
    parts = state["parts"]
    moved = {name: _moved_rows(parts[name], before, old.vocab_size()) for name in _TABLES}
    inputs, outputs, _ = (moved[name] for name in _TABLES)
    rows = word_rows(new, inputs.shape[1])
    common = outputs[: len(before)].mean(dim=0)
    for token, tokens in enumerate(before):
        word = len(tokens) > 1 and new.id_to_piece(token).startswith(SPACE)
        if word or token in rows.written:
            inputs[token] = rows.inputs[token]
        if word or token in rows.spoken:
            outputs[token] = common + rows.outputs[token]
    save_state(folder / "lm.pt", {"parts": parts | moved})


def _before(piece: str, old: sentencepiece.SentencePieceProcessor) -> list[int]:
    """The old tokens of a new token's characters."""
    if piece == old.id_to_piece(same := old.piece_to_id(piece)):
        return [same]
    found: list[int] = old.encode(piece.replace(SPACE, " "))
    inside = not piece.startswith(SPACE) and old.id_to_piece(found[0]) == SPACE
    return found[1:] if inside else found


def _moved_rows(table: Tensor, before: list[list[int]], old_pieces: int) -> Tensor:
    """[old tokens + special rows, dim] -> [PIECES + special rows, dim]."""
    rows = [table[tokens].mean(dim=0) for tokens in before]
    unused = [table[:old_pieces].mean(dim=0)] * (PIECES - len(before))
    return torch.cat((torch.stack(rows + unused), table[old_pieces:]))
