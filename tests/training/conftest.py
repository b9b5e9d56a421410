from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training flushes denormal numbers to zero in its process; the tests after it need them."""
    yield
    torch.set_flush_denormal(False)
