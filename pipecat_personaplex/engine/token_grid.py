"""The delayed token grid of running sessions.

``grid[stream, position]`` holds frame i's text and semantic codes at position i and its acoustic
codes at position i + 1. Running position p predicts the text and semantic code of position p + 1
and the acoustic codes of position p + 1, which belong to frame p. A running session therefore
stores one column of the grid: its next input.
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
    """The complete tokens of one frame: text [B], agent and user codes [B, 8], all int64."""

    text: Tensor
    agent_codes: Tensor
    user_codes: Tensor


class TokenGrid:
    """The next input column of every slot, [slots, 17] int64 on the device.

    Args:
        slots: Number of slots.
        config: Gives the initial tokens.
        device: Device of the columns.
    """

    def __init__(self, slots: int, config: ModelConfig, device: torch.device):
        self._next = initial_column(config).repeat(slots, 1).to(device)

    def start(self, slot: int, column: Tensor) -> None:
        """Write a slot's first live column, [17] int64.

        Its user semantic code is overwritten by ``input_column``.
        """
        self._next[slot] = column

    def text(self, rows: Rows) -> Tensor:
        """The text tokens of the rows' next columns, [B] int64."""
        return self._next[rows, TEXT].clone()

    def input_column(self, rows: Rows, user_codes: Tensor) -> Tensor:
        """Complete the rows' columns with the caller's semantic codes: [B, 8] -> [B, 17]."""
        column = self._next[rows].clone()  # a slice of rows is a view of the table
        column[:, USER_SEMANTIC] = user_codes[:, 0]
        return column

    def advance(
        self, rows: Rows, column: Tensor, text: Tensor, agent_codes: Tensor, user_codes: Tensor
    ) -> Emitted:
        """Store the prediction as the next input column and undo the delay of this frame.

        Args:
            rows: The slots.
            column: The input column that was run, [B, 17].
            text: Text predicted for the next position, [B].
            agent_codes: Semantic and acoustic codes predicted for the next position, [B, 8].
            user_codes: The caller's codes of this frame, [B, 8].

        Returns:
            The tokens of the frame that ``column`` started: its text and semantic code are in
            ``column``, its acoustic codes have just been predicted.
        """
        following = column.clone()  # [B, 17]; the user's semantic code comes with the next frame
        following[:, TEXT] = text
        following[:, AGENT_CODES] = agent_codes
        following[:, USER_ACOUSTIC] = user_codes[:, 1:]
        self._next[rows] = following
        complete = agent_codes.clone()  # [B, 8]
        complete[:, 0] = column[:, AGENT_CODES.start]
        return Emitted(column[:, TEXT], complete, user_codes)
