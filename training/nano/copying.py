"""How a model starts that is to copy values from its prompt: rows of tokens, and a layer.

A token that a prompt states and the token with which the agent says it share a direction in the
table of inputs and in that of outputs, and all values of a fact share another one. So one map
between the tables copies any of them, and an attention head finds a fact by its kind. One layer
starts as that map: whatever it attends to, it passes on, so that attending to the right value pays
from the first step. With random weights, neither is learnt before the other, and a thousand steps
taught the model nothing.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.models.config import LMConfig
from pipecat_personaplex.models.lm import PersonaPlexLM
from training.nano import script
from training.nano.facts import FACTS, IN_BRACKETS
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.parallel_lm import new_lm

SPACE = "\u2581"
"""SentencePiece's mark of a word's beginning."""

_KIND, _OWN = 0.45, 0.9
# Norms of a row in the tables of inputs and outputs. A column's 16 audio tokens have a norm of 25
# together: beside them, the direction of a word of norm 3 is lost.
_INPUT_NORM, _OUTPUT_NORM = 20.0, 2.5
_LAYER = 2  # of those of the language model, counted from 0
_GAIN = 4.0
_LAYERS = "transformer.layers."


def _direction(name: str, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return F.normalize(torch.randn(dim, generator=generator), dim=0)


@dataclass(frozen=True)
class WordRows:
    """Rows of all tokens.

    Attributes:
        written: Tokens of values as prompts write them.
        spoken: Tokens of values as the agent says them.
        inputs: [V, dim], for the table of inputs.
        outputs: [V, dim], to be added to a common row of the table of outputs.
    """

    written: set[int]
    spoken: set[int]
    inputs: Tensor
    outputs: Tensor


def _values() -> dict[str, list[tuple[str, str]]]:
    """Values of each kind, written and spoken."""
    kinds = {fact: [(v.written, v.spoken) for v in values] for fact, values in FACTS.items()}
    kinds["name"] = [(name, name) for name in (*NAMES, *HELD_OUT_NAMES)]
    kinds["surname"] = [(name, name) for name in script.SURNAMES]
    return kinds


def word_rows(tokenizer: sentencepiece.SentencePieceProcessor, dim: int) -> WordRows:
    """Rows of a tokenizer's tokens.

    Args:
        tokenizer: The tokenizer.
        dim: Columns of the tables.
    """
    names = [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())]
    own = torch.stack([_direction(name, dim) for name in names])
    kind = torch.zeros_like(own)
    written: set[int] = set()
    spoken: set[int] = set()
    for name, values in _values().items():
        for text, words in values:
            sounds = tokenizer.encode(words)
            spoken |= set(sounds)
            # An amount's parts are said in their order; what follows the first word of a part, as
            # in "twenty five", follows from that word.
            said = sounds if text == words else _parts(tokenizer, words)
            for tokens in _forms(tokenizer, name, text):
                for place, token in enumerate(tokens):
                    written.add(token)
                    kind[token] = _direction(f"{name} {place}", dim)
                    if place < len(said):
                        own[token] = own[said[place]]
    inputs = _INPUT_NORM * F.normalize(_KIND * kind + _OWN * own, dim=1)
    return WordRows(written, spoken, inputs, _OUTPUT_NORM * own)


def _forms(
    tokenizer: sentencepiece.SentencePieceProcessor, name: str, text: str
) -> list[list[int]]:
    """The tokens of a value in a prompt: after a space, and where it may stand after a bracket."""
    bracket = tokenizer.encode("(")
    forms = [tokenizer.encode(text)]
    if name in IN_BRACKETS:
        forms.append(tokenizer.encode(f"({text}")[len(bracket) :])
    return forms


def _parts(tokenizer: sentencepiece.SentencePieceProcessor, words: str) -> list[int]:
    """The first tokens of an amount's two parts: "nine dollars fifty", "ten thirty five"."""
    first, *rest = words.replace(" dollars", "").split()
    parts = [first, *rest[:1]]
    return [tokenizer.encode(part)[0] for part in parts]


@torch.no_grad()
def start_copying(lm: PersonaPlexLM, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Give a model with random weights its first rows of words, and its copying layer."""
    rows = word_rows(tokenizer, lm.config.dim)
    for token in range(tokenizer.vocab_size()):
        if token in rows.written or tokenizer.id_to_piece(token).startswith(SPACE):
            lm.text_emb.weight[token] = rows.inputs[token]
            lm.text_linear.weight[token] = rows.outputs[token]
    lm.load_state_dict(_copying_layer(lm.config), strict=False)


@torch.no_grad()
def place_unseen_names(lm: PersonaPlexLM, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Give the names that no prompt of the training has rows of outputs like those of the others.

    The training pushes the rows of tokens that it never wants away from all hidden states. Trained
    rows keep their own direction, beside one that they have in common: so these rows get both.
    """
    outputs = lm.text_linear.weight
    own = F.normalize(word_rows(tokenizer, lm.config.dim).outputs, dim=1)
    seen, unseen = ([tokenizer.encode(n)[0] for n in names] for names in (NAMES, HELD_OUT_NAMES))
    common = outputs[seen].mean(dim=0)
    length = ((outputs[seen] - common) * own[seen]).sum(dim=1).mean()
    outputs[unseen] = common + length * own[unseen]


def insert_copying_layer(parts: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """The parts of a state with one layer less than the recipe's, and the copying layer."""
    own = new_lm(config).state_dict() | _copying_layer(config)
    added = {f"lm.{name}": own[name] for name in own if name.startswith(f"{_LAYERS}{_LAYER}.")}
    return {_after_insertion(name): part for name, part in parts.items()} | added


def _copying_layer(config: LMConfig) -> dict[str, Tensor]:
    """Weights of a layer whose values and output are unit matrices; its gating adds nothing."""
    dim, prefix = config.dim, f"{_LAYERS}{_LAYER}"
    ready = torch.eye(dim)
    queries_and_keys = torch.randn(2 * dim, dim) / dim**0.5
    return {
        f"{prefix}.norm1.alpha": torch.ones(dim),
        f"{prefix}.self_attn.in_proj.weight": torch.cat((queries_and_keys, ready)),
        f"{prefix}.self_attn.out_proj.weight": _GAIN * ready,
        f"{prefix}.gating.linear_out.weight": torch.zeros(dim, config.hidden),
    }


def _after_insertion(name: str) -> str:
    if not (found := re.match(rf"lm\.{_LAYERS}(\d+)\.(.*)", name)):
        return name
    number = int(found[1])
    return f"lm.{_LAYERS}{number + (number >= _LAYER)}.{found[2]}"
