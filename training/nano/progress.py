"""Training time budget, training states on disk, and metrics logs."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_WARMUP_STEPS = 100
_LAST_RATE = 0.05
# Seconds. A longer step means that the process was paused; the excess is not training time.
_LONGEST_STEP = 10.0
_FULL_SCALE = 32767


class StateMissing(FileNotFoundError):
    """A file that another command of the recipe writes does not exist yet."""


class NotSaid(RuntimeError):
    """A checkpoint does not say a given sentence: it lacks its words, or falls silent."""


class Clock:
    """Measures training time against a budget, across resumed runs and without pauses.

    Args:
        budget: Training time in seconds.
    """

    def __init__(self, budget: float):
        self._budget = budget
        self.spent = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """Count the time of the step that has just ended."""
        now = time.monotonic()
        self.spent += min(now - self._last, _LONGEST_STEP)
        self._last = now

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.spent >= self._budget

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, from 0 to 1."""
        return min(1.0, self.spent / self._budget)

    def rate_factor(self, step: int) -> float:
        """Factor on the peak learning rate: warm-up, then half a cosine over the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return min(1.0, (step + 1) / _WARMUP_STEPS) * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state atomically: an interrupted write leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state; an empty dictionary if there is no file."""
    if not path.is_file():
        return {}
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def to_int16(pcm: NDArray[np.float32]) -> torch.Tensor:
    """Audio as 16-bit samples, for a state."""
    return torch.from_numpy((pcm.clip(-1, 1) * _FULL_SCALE).astype(np.int16))


def from_int16(samples: torch.Tensor) -> NDArray[np.float32]:
    """The audio of ``to_int16``."""
    return samples.numpy().astype(np.float32) / np.float32(_FULL_SCALE)


def report(log: Path, row: dict[str, Any]) -> None:
    """Print a row of metrics and append it to a file of JSON lines."""
    print(line := json.dumps(row), flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
