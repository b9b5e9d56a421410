"""The slots of one step, and what the host knows of their positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from pipecat_personaplex.models.layers import Rows


@dataclass(frozen=True)
class Batch:
    """The slots of one step, in ascending order.

    Attributes:
        slots: Their indices; none where the device alone knows them.
        rows: The same as a slice where they are neighbours (views, no copies), else a tensor.
    """

    slots: tuple[int, ...]
    rows: Rows

    @staticmethod
    def of(slots: Iterable[int], device: torch.device) -> Batch:
        """Of distinct slots in any order."""
        return _batch(tuple(sorted(slots)), device)


@lru_cache(maxsize=1024)
def _batch(slots: tuple[int, ...], device: torch.device) -> Batch:
    # The same callers step together for minutes: their index tensor is made once.
    first, last = slots[0], slots[-1]
    if last - first + 1 == len(slots):
        return Batch(slots, slice(first, last + 1))
    return Batch(slots, torch.tensor(slots, device=device))


class HostPositions(NamedTuple):
    """What the host knows of a batch's sessions: frames they have had, and positions in all."""

    frames: list[int]
    positions: list[int]
