from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training flushes denormal numbers to zero in its process; the tests after it need them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def seconds_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a training takes a second of its time budget."""
    ticks = itertools.count()
    monkeypatch.setattr("training.nano.progress.time.monotonic", lambda: float(next(ticks)))
