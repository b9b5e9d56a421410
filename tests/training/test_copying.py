"""How a model starts that is to copy values from its prompt."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F

from tests.golden_data import CHECKPOINT
from tests.training.models import CONFIG
from training.nano import script
from training.nano.copying import (
    insert_copying_layer,
    place_unseen_names,
    start_copying,
    word_rows,
)
from training.nano.facts import FACTS
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.parallel_lm import new_lm
from training.nano.tokenizer import PIECES, train_tokenizer

CONFIG_4 = replace(CONFIG.lm, num_layers=4)
LAYERS = "transformer.layers"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return sentencepiece.SentencePieceProcessor(str(path))


def test_a_value_is_written_and_said_in_one_direction(
    tokenizer: sentencepiece.SentencePieceProcessor,
) -> None:
    rows = word_rows(tokenizer, 128)
    inputs, outputs = F.normalize(rows.inputs, dim=1), F.normalize(rows.outputs, dim=1)

    def likeness(written: str, spoken: str) -> float:
        first, second = (tokenizer.piece_to_id(piece) for piece in (written, spoken))
        return float(inputs[first] @ outputs[second])

    pairs = (("▁$9", "▁nine"), (".25", "▁twenty"), (":45", "▁forty"), ("▁10", "▁ten"))
    bracketed = (("$9", "▁nine"), ("beans", "▁beans"), ("bread", "▁bread"))
    for written, spoken in (*pairs, *bracketed, ("▁Owen", "▁Owen")):
        assert likeness(written, spoken) > 0.8
    assert abs(likeness("▁Owen", "▁Maya")) < 0.4
    names = [tokenizer.piece_to_id(f"▁{name}") for name in NAMES]
    alike = (inputs[names] @ inputs[names].T).mean()
    assert 0.1 < alike < 0.5, "names have a direction in common"


def test_all_that_a_prompt_states_has_a_direction(
    tokenizer: sentencepiece.SentencePieceProcessor,
) -> None:
    written = word_rows(tokenizer, 128).written
    for seed in range(100):
        agent = script.sample_character(np.random.default_rng(seed), "restaurant")
        tokens = tokenizer.encode(agent.prompt)
        for value in agent.facts.values():
            own = re.findall(r"\$?\d+|[.:]\d\d|[A-Za-z]+", value.written)
            assert {tokenizer.id_to_piece(token).strip("▁") for token in {*tokens} & written} >= {
                *own
            } - {"pm", "The"}


def test_no_word_of_the_contents_stands_in_two_places() -> None:
    places: dict[str, tuple[str, int]] = {}
    for fact in ("in_classic", "in_spicy"):
        for value in FACTS[fact][1:]:
            first, _, second = value.spoken.split()
            for place, word in enumerate((first, second)):
                assert places.setdefault(word, (fact, place)) == (fact, place)
    dishes = {value.written for value in FACTS["dish"]}
    assert not dishes & places.keys()


def test_a_layer_starts_as_a_map_of_what_it_attends_to() -> None:
    torch.manual_seed(0)
    smaller = new_lm(replace(CONFIG_4, num_layers=3))
    parts = {f"lm.{name}": part for name, part in smaller.state_dict().items()}
    parts["words.bias"] = torch.ones(3)
    grown = insert_copying_layer(parts, CONFIG_4)
    assert "words.bias" in grown
    lm = new_lm(CONFIG_4)
    own = {name.removeprefix("lm."): part for name, part in grown.items() if "lm." in name}
    lm.load_state_dict(own)
    weight = "self_attn.in_proj.weight"
    for before, after in ((0, 0), (1, 1), (2, 3)):
        torch.testing.assert_close(
            lm.get_parameter(f"{LAYERS}.{after}.{weight}"),
            smaller.get_parameter(f"{LAYERS}.{before}.{weight}"),
        )
    x = torch.randn(CONFIG_4.dim)
    values = lm.get_parameter(f"{LAYERS}.2.{weight}")[2 * CONFIG_4.dim :] @ x
    passed = lm.get_parameter(f"{LAYERS}.2.self_attn.out_proj.weight") @ values
    torch.testing.assert_close(F.normalize(passed, dim=0), F.normalize(x, dim=0))
    assert not lm.get_parameter(f"{LAYERS}.2.gating.linear_out.weight").any()


def test_a_model_with_random_weights_starts_with_rows_of_words() -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer_spm_32k_3.model"))
    lm = new_lm(CONFIG_4)
    start_copying(lm, tokenizer)
    rows = word_rows(tokenizer, CONFIG_4.dim)
    token = next(iter(rows.written))
    torch.testing.assert_close(lm.text_emb.weight[token].detach(), rows.inputs[token])
    torch.testing.assert_close(lm.text_linear.weight[token].detach(), rows.outputs[token])


def test_unseen_names_can_be_said_although_the_training_never_wanted_them(
    tokenizer: sentencepiece.SentencePieceProcessor,
) -> None:
    torch.manual_seed(0)
    lm = new_lm(replace(CONFIG_4, text_card=PIECES))
    start_copying(lm, tokenizer)
    own = word_rows(tokenizer, CONFIG_4.dim).outputs
    state = F.normalize(torch.randn(CONFIG_4.dim), dim=0)  # in which a name follows
    seen, unseen = ([tokenizer.encode(name)[0] for name in n] for n in (NAMES, HELD_OUT_NAMES))
    outputs = lm.text_linear.weight
    with torch.no_grad():
        outputs.sub_(4 * state)
        outputs[seen] += 8 * state

    def said(token: int) -> int:
        """What a state says that attends to a name of the prompt."""
        return int((outputs @ (state + F.normalize(own[token], dim=0))).argmax())

    assert sum(said(token) == token for token in seen) > 0.95 * len(seen)
    assert not any(said(token) == token for token in unseen)
    others = outputs[seen].clone()
    place_unseen_names(lm, tokenizer)
    assert sum(said(token) == token for token in unseen) > 0.95 * len(unseen)
    assert torch.equal(outputs[seen], others)
