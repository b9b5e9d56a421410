"""The delayed token grid.

``grid[stream, position]``: frame i's text and semantic codes stand at position i, its acoustic
codes at i + 1. Running position p predicts text and semantic code at p + 1 and the acoustic
codes of p + 1, so of the grid a live call needs just the next input column of each slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    TEXT,
    USER_ACOUSTIC,
    USER_SEMANTIC,
)
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.layers import Rows


@dataclass(frozen=True)
class Emitted:
    """What one frame says: text [B], agent and user codes [B, 8], all int64."""

    text: Tensor
    agent_codes: Tensor
    user_codes: Tensor


class TokenGrid:
    """The next input column of every slot, on the device."""

    def __init__(self, slots: int, config: ModelConfig, device: torch.device):
        self._next = initial_column(config).repeat(slots, 1).to(device)

    def start(self, slot: int, column: Tensor) -> None:
        """Give a slot its first live column [17]; the caller's semantic code comes with a frame."""
        self._next[slot] = column

    def input_column(self, rows: Rows, user_codes: Tensor) -> Tensor:
        """Complete the rows' columns with the caller's semantic codes: [B, 8] -> [B, 17]."""
        column = self._next[rows].clone()
        column[:, USER_SEMANTIC] = user_codes[:, 0]
        return column

    def advance(
        self, rows: Rows, column: Tensor, text: Tensor, agent_codes: Tensor, user_codes: Tensor
    ) -> Emitted:
        """Take what running ``column`` predicted; say what is now complete.

        Args:
            rows: The slots.
            column: The input column that was run, [B, 17].
            text: Predicted for the next position, [B].
            agent_codes: Semantic and acoustic, predicted for the next position, [B, 8].
            user_codes: The caller's codes of this frame, [B, 8].
        """
        following = column.clone()
        following[:, TEXT] = text
        following[:, AGENT_CODES] = agent_codes
        following[:, USER_ACOUSTIC] = user_codes[:, 1:]
        self._next[rows] = following
        complete = agent_codes.clone()
        complete[:, 0] = column[:, AGENT_CODES.start]
        return Emitted(column[:, TEXT], complete, user_codes)
