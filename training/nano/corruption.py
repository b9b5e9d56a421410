"""Random errors in the inputs of training sequences."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    TEXT,
    TEXT_PAD,
    USER_ACOUSTIC,
    USER_CODES,
    ZERO_TOKEN,
)
from pipecat_personaplex.models.config import ModelConfig
from training.nano.dialogues import Example


def corrupt_inputs(example: Example, config: ModelConfig, random: np.random.Generator) -> None:
    """Replace some inputs by random tokens, in place.

    The model must tolerate callers that differ from the training voices, and its own sampling
    errors. The targets do not change.
    """
    columns = example.columns
    user = columns[:, USER_ACOUSTIC]
    if random.random() < 0.25:
        user[:] = ZERO_TOKEN
    else:
        user[_random_mask(random, user.shape, 0.2)] = ZERO_TOKEN
    for streams, share in ((USER_CODES, 0.06), (AGENT_CODES, 0.08)):
        part = columns[:, streams]
        corrupted = _random_mask(random, part.shape, share * random.random())
        part[corrupted] = torch.from_numpy(random.integers(0, config.lm.card, part.shape))[
            corrupted
        ]
    # After a wrong word, the question still determines the next words.
    text = columns[:, TEXT]
    live = (example.text_weights > 0) & (text != TEXT_PAD)
    corrupted = live & _random_mask(random, text.shape, 0.03)
    text[corrupted] = torch.from_numpy(random.integers(0, config.lm.text_card, text.shape))[
        corrupted
    ]


def _random_mask(random: np.random.Generator, shape: torch.Size, share: float) -> Tensor:
    return torch.from_numpy(random.random(tuple(shape)) < share)
