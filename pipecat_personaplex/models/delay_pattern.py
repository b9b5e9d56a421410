"""The delay pattern: at which position of the token grid a frame's tokens are.

The grid has one column per position and 17 streams: text, 8 agent codes, 8 user codes. A delayed
stream holds a frame's token one position after the others (``constants.DELAYS``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipecat_personaplex.constants import DELAYS, STREAMS, TEXT
from pipecat_personaplex.models.config import ModelConfig


def initial_column(config: ModelConfig) -> Tensor:
    """The initial tokens, which every stream has at position 0: [17] int64."""
    column = torch.full((STREAMS,), config.lm.card)
    column[TEXT] = config.lm.text_card
    return column


def prompt_columns(frames: Tensor, config: ModelConfig) -> Tensor:
    """Write the frames of a prompt into the delayed grid.

    The tokens of frame 0 are dropped: the reference has initial tokens at their positions.

    Args:
        frames: [P, 17] int64, the 17 tokens of each frame.
        config: The model, for its initial tokens.

    Returns:
        [P + 1, 17] int64: the input columns 0..P-1, and column P, in which only the delayed streams
        hold the prompt's tokens.
    """
    delayed = torch.tensor(DELAYS, dtype=torch.bool)
    columns = initial_column(config).repeat(frames.shape[0] + 1, 1)
    columns[1:-1, ~delayed] = frames[1:, ~delayed]
    columns[2:, delayed] = frames[1:, delayed]
    return columns
