from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A command of the recipe flushes them to zero in its process; the tests after it need them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def seconds_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a training takes a second of its time budget."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))  # only for this module
    monkeypatch.setattr("training.nano.progress.time", clock)
