"""The order store: what each change does, what is refused, and a simple model of both."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bots.order_window.menu import Menu, MenuItem, read_menu
from bots.order_window.store import MAX_LINES, NO_NOTE, OrderStore
from bots.tool_problem import ToolProblem
from pipecat_personaplex.errors import ConfigError


def stock(store: OrderStore) -> dict[str, int]:
    return {item.name: item.stock for item in store.menu().items}


def test_an_order_grows_changes_and_is_placed(store: OrderStore) -> None:
    store.add("a", "1", "spicy", 2)
    store.add("a", "2", "large coffee", 1)
    store.add("a", "3", "coffee", 1, "Small", "no sugar")
    answer = store.change("a", "4", "spicy", 1)
    assert answer["order"] == ["1 Spicy shakshuka", "1 large Coffee", "1 small Coffee (no sugar)"]
    assert answer["total"] == "$16.25"
    placed = store.place("a")
    assert placed["result"].startswith("Order 1 is placed: 1 Spicy shakshuka, 1 large Coffee")
    order = store.order("a")
    assert order is not None and order.placed and order.cents == 1625
    assert stock(store)["Coffee"] == 98 and stock(store)["Spicy shakshuka"] == 39
    [receipt] = store.receipts()
    assert receipt.splitlines()[0] == "Jerusalem Shakshuka"
    assert receipt.splitlines()[-1].split() == ["Total", "$16.25"]


def test_the_same_item_again_joins_its_line(store: OrderStore) -> None:
    store.add("a", "1", "tea", 1)
    assert store.add("a", "2", "tea", 2)["order"] == ["3 Tea"]


def test_notes_of_one_meaning_join_their_line(store: OrderStore) -> None:
    store.add("a", "1", "tea", 1, "", "No sugar")
    assert store.add("a", "2", "tea", 2, "", "no sugar")["order"] == ["3 Tea (No sugar)"]


def test_a_size_may_be_called_regular_and_another_have_two_words(tmp_path: Path) -> None:
    sizes = {"regular": 250, "large": 350, "extra large": 450}
    menu = Menu("R", "$", (MenuItem("Fries", "", (), 9, sizes),))
    store = OrderStore(tmp_path / "orders.db", menu)
    with pytest.raises(ToolProblem, match="comes in regular and large and extra large"):
        store.add("a", "1", "fries", 1)
    with pytest.raises(ToolProblem, match="there is no size 'medium'"):
        store.add("a", "2", "fries", 1, "medium")
    assert store.look_up("fries")["items"][0]["price"] == {
        "regular": "$2.50",
        "large": "$3.50",
        "extra large": "$4.50",
    }
    assert store.add("a", "3", "extra large fries", 1)["total"] == "$4.50"
    store.close()


def test_calls_have_orders_of_their_own(store: OrderStore) -> None:
    store.add("a", "1", "tea", 1)
    store.add("b", "1", "tea", 2)
    store.place("a")
    order = store.order("b")
    assert order is not None and not order.placed and order.lines[0].quantity == 2


class TestRepeated:
    def test_a_repeated_tool_call_changes_nothing(self, store: OrderStore) -> None:
        first = store.add("a", "1", "tea", 1)
        store.add("a", "2", "spicy", 1)
        assert store.add("a", "1", "tea", 1) == first
        order = store.order("a")
        assert order is not None and [line.quantity for line in order.lines] == [1, 1]

    def test_one_id_for_different_requests_counts_as_different(self, store: OrderStore) -> None:
        store.add("a", "call_0", "tea", 1)
        assert len(store.add("a", "call_0", "spicy", 1)["order"]) == 2

    def test_place_twice_is_one_order(self, store: OrderStore) -> None:
        store.add("a", "1", "tea", 1)
        first = store.place("a")
        assert store.place("a") == first == store.place("a")
        assert stock(store)["Tea"] == 99 and len(store.receipts()) == 1

    def test_something_more_after_placing_is_a_second_order(self, store: OrderStore) -> None:
        store.add("a", "1", "tea", 1)
        store.place("a")
        assert store.add("a", "3", "spicy", 1)["order"] == ["1 Spicy shakshuka"]
        assert "Order 2 is placed" in store.place("a")["result"]
        assert len(store.receipts()) == 2

    def test_a_change_taken_back_leaves_the_placed_order_on_show(self, store: OrderStore) -> None:
        store.add("a", "1", "tea", 1)
        store.place("a")
        store.add("a", "3", "spicy", 1)
        store.change("a", "4", "spicy", 0)
        assert "Order 1 is placed" in store.place("a")["result"]
        assert len(store.receipts()) == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("pizza", 1), "There is no 'pizza' on the menu. The nearest is: Classic shakshuka"),
            (("spicey", 1), "The nearest is: Spicy shakshuka"),
            (("shakshuka", 1), "may be Classic shakshuka or Spicy shakshuka. Ask which one."),
            (("coffee", 1), "Coffee comes in small and large; the size is missing"),
            (("coffee", 1, "huge"), "there is no size 'huge'"),
            (("tea", 1, "large"), "Tea comes in one size only"),
            (("tea", 21), "At most 20 Tea"),
        ],
    )
    def test_what_cannot_be_added(
        self, store: OrderStore, arguments: tuple[Any, ...], message: str
    ) -> None:
        with pytest.raises(ToolProblem, match=message):
            store.add("a", "1", *arguments)
        assert store.order("a") is None
        assert store.latest(5) == []

    def test_a_refusal_leaves_the_order_as_it_was(self, store: OrderStore) -> None:
        store.add("a", "1", "tea", 15)
        with pytest.raises(ToolProblem, match="that would be 25"):
            store.add("a", "2", "tea", 10)
        order = store.order("a")
        assert order is not None and order.lines[0].quantity == 15
        assert store.add("a", "2", "tea", 1)["order"] == ["16 Tea"], "the id is still unused"

    def test_more_than_are_left(self, tmp_path: Path) -> None:
        items = (MenuItem("Tea", "", (), 3, {"small": 100, "large": 200}),)
        store = OrderStore(tmp_path / "o.db", Menu("R", "$", items))
        store.add("a", "1", "tea", 2, "small")
        with pytest.raises(ToolProblem, match="Only 3 Tea are left; the order would have 4"):
            store.add("a", "2", "tea", 2, "large")
        with pytest.raises(ToolProblem, match="Only 3 Tea are left"):
            store.change("a", "3", "tea", 4)
        store.add("b", "1", "tea", 2, "large")
        store.place("b")
        with pytest.raises(ToolProblem, match="Not placed: only 1 Tea are left, and the order has"):
            store.place("a")
        assert store.change("a", "5", "tea", 1)["order"] == ["1 small Tea"]
        store.place("a")
        assert stock(store) == {"Tea": 0}
        store.close()

    def test_more_than_an_order_may_have_in_all_sizes_and_notes(self, store: OrderStore) -> None:
        store.add("a", "1", "small coffee", 12)
        with pytest.raises(ToolProblem, match="At most 20 Coffee are possible in one order"):
            store.add("a", "2", "large coffee", 9)
        store.add("a", "3", "small coffee", 8, note="no sugar")
        with pytest.raises(ToolProblem, match="that would be 21"):
            store.change("a", "4", "coffee", 13, note="none")
        assert store.change("a", "5", "coffee", 11, note="none")["order"][0] == "11 small Coffee"

    def test_an_empty_order_is_not_placed(self, store: OrderStore) -> None:
        with pytest.raises(ToolProblem, match="empty"):
            store.place("a")
        store.add("a", "1", "tea", 1)
        store.change("a", "2", "tea", 0)
        with pytest.raises(ToolProblem, match="empty"):
            store.place("a")

    def test_a_line_that_is_not_clear(self, store: OrderStore) -> None:
        store.add("a", "1", "coffee", 1, "small")
        store.add("a", "2", "coffee", 1, "large")
        with pytest.raises(ToolProblem, match=r"1 small Coffee and 1 large Coffee. Ask which one"):
            store.change("a", "3", "coffee", 2)
        assert store.change("a", "4", "large coffee", 0)["order"] == ["1 small Coffee"]
        with pytest.raises(ToolProblem, match=r"does not contain that. It contains 1 small Coffee"):
            store.change("a", "5", "tea", 1)

    def test_of_two_lines_the_one_without_a_note(self, store: OrderStore) -> None:
        store.add("a", "1", "tea", 1)
        store.add("a", "2", "tea", 1, note="no sugar")
        with pytest.raises(ToolProblem, match="Ask which one"):
            store.change("a", "3", "tea", 0)
        assert store.change("a", "4", "tea", 0, note="none")["order"] == ["1 Tea (no sugar)"]
        with pytest.raises(ToolProblem, match="does not contain that"):
            store.change("a", "5", "tea", 0, note="none")
        assert store.add("a", "6", "tea", 2, note="None")["order"] == ["1 Tea (no sugar)", "2 Tea"]
        assert store.change("a", "7", "tea", 0, note="No sugar")["order"] == ["2 Tea"]

    def test_too_many_lines(self, store: OrderStore) -> None:
        for index in range(MAX_LINES):
            name = ("tea", "spicy")[index % 2]
            store.add("a", str(index), name, 1, note=f"wish {index}")
        with pytest.raises(ToolProblem, match="at most 30 lines"):
            store.add("a", "x", "tea", 1, note="one more")
        assert len(store.add("a", "y", "tea", 1, note="wish 0")["order"]) == MAX_LINES

    def test_look_up(self, store: OrderStore) -> None:
        assert len(store.look_up("")["items"]) == 5
        [coffee] = store.look_up("coffee")["items"]
        assert coffee["price"] == {"small": "$2.50", "large": "$3.50"}
        assert store.look_up("spicy")["items"][0]["price"] == "$10.25"
        with pytest.raises(ToolProblem, match="no 'sushi'"):
            store.look_up("sushi")


class TestFile:
    def test_an_existing_file_keeps_its_menu_and_orders(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "orders.db"
        first = OrderStore(path, read_menu())
        first.add("a", "1", "tea", 1)
        first.close()
        other = Menu("Other", "€", (MenuItem("Soup", "", (), 1, {"regular": 1}),))
        again = OrderStore(path, other)
        order = again.order("a")
        assert again.restaurant == "Jerusalem Shakshuka" and "Tea" in stock(again)
        assert order is not None and str(order) == "1 Tea"
        again.close()

    def test_files_that_are_no_order_database(self, tmp_path: Path) -> None:
        text = tmp_path / "text.db"
        text.write_text("no database, but a text that is longer than SQLite's header of a file" * 9)
        with pytest.raises(ConfigError, match="cannot be used: file is not a database"):
            OrderStore(text, read_menu())
        foreign = tmp_path / "foreign.db"
        connection = sqlite3.connect(foreign)
        connection.execute("CREATE TABLE mine (x)")
        connection.close()
        with pytest.raises(ConfigError, match="another program"):
            OrderStore(foreign, read_menu())
        with pytest.raises(ConfigError, match="cannot be used"):
            OrderStore(text / "orders.db", read_menu())
        newer = tmp_path / "newer.db"
        OrderStore(newer, read_menu()).close()
        connection = sqlite3.connect(newer)
        connection.execute("PRAGMA user_version = 7")
        connection.close()
        with pytest.raises(ConfigError, match="version 7"):
            OrderStore(newer, read_menu())


PRICES = {"Tea": 225, "Spicy shakshuka": 1025}


class Orders(RuleBasedStateMachine):
    """Random changes of two calls, compared with counters in memory."""

    calls = st.sampled_from(["a", "b"])
    names = st.sampled_from(["Tea", "Spicy shakshuka"])
    notes = st.sampled_from(["", "no sugar"])
    added = st.sampled_from([1, 5, 11, 20])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # By name and note.
        self.open: dict[str, Counter[tuple[str, str]]] = {"a": Counter(), "b": Counter()}
        self.sold: Counter[str] = Counter()
        self.cents = 0
        self.placed = 0
        self.tool_call = 0

    @initialize(left=st.sampled_from([0, 12, 60]))
    def start(self, left: int) -> None:
        self.left = left
        items = [MenuItem(n, "", (), left, {"regular": c}) for n, c in PRICES.items()]
        path = Path(self.folder.name) / "orders.db"
        self.store = OrderStore(path, Menu("R", "$", tuple(items)))

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def change(self, repeat: bool, possible: bool, method: Any, *arguments: Any) -> None:
        self.tool_call += 1
        for _ in range(2 if repeat else 1):
            try:
                method(arguments[0], str(self.tool_call), *arguments[1:])
                done = True
            except ToolProblem:
                done = False
            assert done == possible

    def available(self, name: str) -> int:
        return self.left - self.sold[name]

    def wanted(self, call: str) -> Counter[str]:
        """How many of each item the call's open order has, over all notes."""
        wanted: Counter[str] = Counter()
        for (name, _), quantity in self.open[call].items():
            wanted[name] += quantity
        return +wanted

    @rule(call=calls, name=names, note=notes, quantity=added, repeat=st.booleans())
    def add(self, call: str, name: str, note: str, quantity: int, repeat: bool) -> None:
        wanted = self.wanted(call)[name] + quantity
        possible = wanted <= min(20, self.available(name))
        self.change(repeat, possible, self.store.add, call, name, quantity, "", note)
        if possible:
            self.open[call][name, note] += quantity

    @rule(call=calls, name=names, note=notes, quantity=st.integers(0, 20), repeat=st.booleans())
    def set(self, call: str, name: str, note: str, quantity: int, repeat: bool) -> None:
        old = self.open[call][name, note]
        wanted = self.wanted(call)[name] - old + quantity
        possible = old > 0 and (quantity <= old or wanted <= min(20, self.available(name)))
        # A repeated removal is recognised by its id; with an id of its own it would be refused.
        self.change(repeat, possible, self.store.change, call, name, quantity, "", note or NO_NOTE)
        if possible:
            self.open[call][name, note] = quantity

    @rule(call=calls, repeat=st.booleans())
    def place(self, call: str, repeat: bool) -> None:
        wanted = self.wanted(call)
        earlier = self.store.order(call)
        enough = all(count <= self.available(name) for name, count in wanted.items())
        possible = (bool(wanted) and enough) or (not wanted and earlier is not None)
        self.change(repeat, possible, lambda call, _: self.store.place(call), call)
        if wanted and enough:
            self.sold += wanted
            self.cents += sum(PRICES[name] * count for name, count in wanted.items())
            self.open[call].clear()
            self.placed += 1

    @invariant()
    def the_store_agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        for item in self.store.menu().items:
            assert item.stock == self.available(item.name) >= 0
        orders = self.store.latest(10_000)
        placed = [order for order in orders if order.placed]
        assert len(placed) == self.placed == len(self.store.receipts())
        assert sum(order.cents for order in placed) == self.cents
        for call, wanted in self.open.items():
            found = [order for order in orders if order.call == call and not order.placed]
            lines = found[0].lines if found else ()
            assert {(line.item, line.note): line.quantity for line in lines} == dict(+wanted)


Orders.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestModel = Orders.TestCase
