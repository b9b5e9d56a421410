"""The delayed token grid: which position holds a frame's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    DELAYS,
    STREAMS,
    TEXT,
)
from pipecat_personaplex.models.config import ModelConfig


def initial_column(config: ModelConfig) -> Tensor:
    """What position 0 holds in every stream: [17] int64."""
    column = torch.full((STREAMS,), config.lm.card)
    column[TEXT] = config.lm.text_card
    return column


def prompt_columns(frames: Tensor, config: ModelConfig) -> Tensor:
    """Lay prompt frames into the grid.

    Frame 0 is lost: the reference keeps the initial token wherever it would stand.

    Args:
        frames: [P, 17] int64, each frame's 17 tokens.
        config: For the initial tokens.

    Returns:
        [P + 1, 17] int64: the input columns 0..P-1, and column P, of which only the delayed
        streams are given.
    """
    delayed = torch.tensor(DELAYS, dtype=torch.bool)
    columns = initial_column(config).repeat(frames.shape[0] + 1, 1)
    columns[1:-1, ~delayed] = frames[1:, ~delayed]
    columns[2:, delayed] = frames[1:, delayed]
    return columns
