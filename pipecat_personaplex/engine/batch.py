"""The slots of one step, and their positions as far as the host knows them."""

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
        slots: Slot indices on the host. Empty in a captured step, where only the device has them.
        rows: The same indices for use on slot tables: a slice if the slots are consecutive
            (tables are then viewed, not copied), otherwise an int64 tensor [B].
    """

    slots: tuple[int, ...]
    rows: Rows

    @staticmethod
    def of(slots: Iterable[int], device: torch.device) -> Batch:
        """Make a batch of distinct slots given in any order; its index tensor is on ``device``."""
        return _batch(tuple(sorted(slots)), device)


# The same sessions share many steps, so the index tensor of a combination is reused.
@lru_cache(maxsize=1024)
def _batch(slots: tuple[int, ...], device: torch.device) -> Batch:
    first, last = slots[0], slots[-1]
    if last - first + 1 == len(slots):
        return Batch(slots, slice(first, last + 1))
    return Batch(slots, torch.tensor(slots, device=device))


class HostPositions(NamedTuple):
    """Progress of a batch's sessions in Python integers, or None where only the device has it.

    An eager step on a CPU slices each ring to its filled length and therefore needs these numbers
    on the host. A captured step must not depend on them: its fields are None.

    Attributes:
        encoded: Frames that each row's encoder has processed.
        decoded: Frames that each row's decoder has processed.
        positions: The position that each row runs next in the temporal transformer.
    """

    encoded: list[int] | None = None
    decoded: list[int] | None = None
    positions: list[int] | None = None
