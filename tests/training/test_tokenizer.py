"""nano's tokenizer, and a language model's way from one tokenizer to another."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD
from tests.golden_data import CHECKPOINT
from training.nano import script
from training.nano.copying import word_rows
from training.nano.material import WORDS
from training.nano.progress import StateMissing, load_state, save_state
from training.nano.tokenizer import PIECES, replace_tokenizer, train_tokenizer

OLD = CHECKPOINT / "tokenizer_spm_32k_3.model"
TABLES = ("lm.text_emb.weight", "lm.text_linear.weight", "lm.depth.text_emb.weight")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return sentencepiece.SentencePieceProcessor(str(path))


def test_each_word_is_one_token(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    lines = script.all_lines()
    words = {word for text in lines for word in re.findall(r"[A-Za-z]+", text)}
    assert {word for word in (*words, *WORDS) if len(tokenizer.encode(word)) != 1} == set()
    assert tokenizer.encode("$9.50, 10:30 pm", out_type=str) == [
        "▁$9",
        ".50",
        ",",
        "▁10",
        ":30",
        "▁pm",
    ]
    assert tokenizer.vocab_size() <= PIECES
    assert (tokenizer.unk_id(), tokenizer.pad_id()) == (TEXT_EPAD, TEXT_PAD)


def test_any_text_comes_back(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    prompts = [script.sample_character(np.random.default_rng(seed)).prompt for seed in range(50)]
    for text in (*prompts, *script.all_lines(), "Zebulon's café: 12 ≥ $3.47?"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_language_model_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(StateMissing, match="run `adopt` first"):
        replace_tokenizer(tmp_path)
    old = sentencepiece.SentencePieceProcessor(str(OLD))
    generator = torch.Generator().manual_seed(0)
    count = old.vocab_size()
    parts = {
        name: torch.randn(count + (name != TABLES[1]), 6, generator=generator) for name in TABLES
    }
    parts["lm.other"] = torch.ones(2)
    save_state(tmp_path / "lm.pt", {"parts": parts, "optimizer": {}, "step": 3, "spent": 4.0})
    shutil.copyfile(OLD, tmp_path / "tokenizer.model")

    replace_tokenizer(tmp_path)

    new = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    state = load_state(tmp_path / "lm.pt")
    assert state.keys() == {"parts"}, "no optimizer's state of other rows"
    torch.testing.assert_close(state["parts"]["lm.other"], parts["lm.other"])
    for name in TABLES:
        before, after = parts[name], state["parts"][name]
        assert len(after) == PIECES + len(before) - count
        torch.testing.assert_close(after[PIECES:], before[count:])
        for token in (TEXT_EPAD, TEXT_PAD):
            torch.testing.assert_close(after[token], before[token])
    pieces, (piece,) = old.encode("Margaret"), new.encode("Margaret")
    assert len(pieces) > 1
    table = state["parts"][TABLES[2]]
    torch.testing.assert_close(table[piece], parts[TABLES[2]][pieces].mean(dim=0))
    rows = word_rows(new, 6)
    inputs, outputs = (state["parts"][name] for name in TABLES[:2])
    torch.testing.assert_close(inputs[piece], rows.inputs[piece])
    (other,) = new.encode("Nicole")
    difference = outputs[piece] - outputs[other]
    torch.testing.assert_close(difference, rows.outputs[piece] - rows.outputs[other])
