"""The order store with several writers, and with writers that are killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bots.order_window.menu import Menu, MenuItem, read_menu
from bots.order_window.store import OrderStore
from bots.tool_problem import ToolProblem
from tests.helpers.forking import ROOT

STOCK = 15


def sold_out_menu() -> Menu:
    return Menu("R", "$", (MenuItem("Tea", "", (), STOCK, {"regular": 225}),))


def buy(path: Path, call: str) -> bool:
    """Order two teas with a connection of its own; returns whether they were still there."""
    store = OrderStore(path, sold_out_menu())
    try:
        store.add(call, "1", "tea", 2)
        store.place(call)
        return True
    except ToolProblem as problem:
        assert "are left" in str(problem)
        return False
    finally:
        store.close()


def test_concurrent_callers_never_sell_more_than_the_stock(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    with ThreadPoolExecutor(12) as pool:  # each also races for the creation of the file
        sold = list(pool.map(lambda index: buy(path, f"call-{index}"), range(12)))
    store = OrderStore(path, sold_out_menu())
    assert sum(sold) == STOCK // 2 == len(store.receipts())
    assert store.menu().items[0].stock == STOCK % 2
    store.close()


def test_concurrent_tools_of_one_call_on_one_store(tmp_path: Path) -> None:
    store = OrderStore(tmp_path / "orders.db", read_menu())
    with ThreadPoolExecutor(8) as pool:
        # Each id comes three times, as if a client repeated it.
        list(pool.map(lambda i: store.add("a", str(i % 10), "tea", 1), range(30)))
        list(pool.map(lambda i: store.place("a"), range(8)))
    [order] = store.latest(10)
    assert (str(order), bool(order.placed)) == ("10 Tea", True)
    assert len(store.receipts()) == 1
    store.close()


@pytest.mark.parametrize("steps", [1, 6])
def test_nothing_is_lost_when_the_process_is_killed(tmp_path: Path, steps: int) -> None:
    """SIGKILL between two tools, or within one: what was answered is there, and all is whole."""
    path = tmp_path / "orders.db"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bots.order_window.orders_process", str(path), "call"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(steps):
        answered = int(process.stdout.readline())
    process.kill()
    rest = process.stdout.read().split("\n")  # printed before the signal arrived; may be cut off
    answered = max([answered, *map(int, rest[:-1])])
    process.wait()
    process.stdout.close()

    store = OrderStore(path, read_menu())
    orders = store.latest(10_000)
    lines = sum(len(order.lines) for order in orders)
    placed = sum(bool(order.placed) for order in orders)
    # The last change may have been written without an answer.
    assert answered <= lines + placed <= answered + 1
    assert len(store.receipts()) == placed
    tea = next(item for item in store.menu().items if item.name == "Tea")
    assert tea.stock == 100 - 3 * placed
    # A call that goes on finds its order, and a tool call that is repeated changes nothing.
    last = orders[0]
    answer = store.add(last.call, "0", "tea", 1, note="cup 0")
    assert answer["order"][0] == "1 Tea (cup 0)" and len(store.latest(10_000)) == len(orders)
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_a_full_disk_undoes_the_change(tmp_path: Path) -> None:
    store = OrderStore(tmp_path / "orders.db", read_menu())
    store.add("a", "0", "tea", 1)
    with store._database.reading() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for index in range(1, 1_000):
            store.add("a", str(index), "spicy", 1, note=f"wish {index % 5} {'x' * 70}")
            store.change("a", f"-{index}", "spicy", 0, note=f"wish {index % 5} {'x' * 70}")
    order = store.order("a")
    assert order is not None and str(order).startswith("1 Tea")
    with store._database.reading() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    assert store.add("a", "again", "tea", 1)["order"][0] == "2 Tea"
    store.close()


def test_a_locked_file_undoes_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bots.order_window.database._BUSY_SECONDS", 0.05)
    path = tmp_path / "orders.db"
    store = OrderStore(path, read_menu())
    store.add("a", "1", "tea", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.add("a", "2", "tea", 1)
    order = store.order("a")
    assert order is not None and str(order) == "1 Tea", "readers do not wait for a writer"
    other.execute("ROLLBACK")
    other.close()
    assert store.add("a", "2", "tea", 1)["order"] == ["2 Tea"]
    store.close()
