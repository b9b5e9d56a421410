from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bots.order_window.menu import read_menu
from bots.order_window.store import OrderStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OrderStore]:
    store = OrderStore(tmp_path / "orders.db", read_menu())
    yield store
    store.close()
