"""The orders: what the tools do, each as one transaction."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bots.order_window.database import MAX_QUANTITY, Database
from bots.order_window.menu import (
    ONE_SIZE,
    Menu,
    MenuItem,
    find_item,
    money,
    nearest_names,
    size_in,
)
from bots.order_window.order import Line, Order, quantities
from bots.order_window.rows import (
    open_order,
    place_order,
    read_items,
    read_lines,
    read_orders,
    write_line,
)
from bots.tool_problem import ToolProblem

_Result = TypeVar("_Result")

MAX_LINES = 30
"""How many different lines an order may contain."""
NO_NOTE = "none"
"""What a language model gives as the note of a line that has none."""


class OrderStore:
    """Menu, stock and orders of a restaurant in one SQLite file.

    Several calls, threads and processes may use a file at the same time. Methods block for a few
    milliseconds; an event loop calls them by ``run``.

    ``add`` and ``change`` take the id of the tool call that requests them, and their answer is
    stored in the same transaction: a repeated tool call gets the same answer and changes nothing.
    No other request of the call may have its id; ``tool_calls.call_id`` returns such ids.
    ``place`` needs none: a second call returns the first answer. The stock decreases when an order
    is placed.

    Args:
        path: The database file; created if it does not exist.
        menu: The menu of a new file.

    Raises:
        ConfigError: The file cannot be used.

    Example::

        store = OrderStore(Path("orders.db"), read_menu())
        store.add("call-1", "tool-1", "spicy", 2)
        print(store.place("call-1"))
    """

    def __init__(self, path: Path, menu: Menu):
        self._database = Database(path, menu)
        with self._database.reading() as db:
            self.restaurant, self.currency = db.execute("SELECT * FROM restaurant").fetchone()
        # A thread of its own: transcription may occupy all of asyncio's threads.
        self._thread = ThreadPoolExecutor(1, "orders")

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._database.close()

    async def run(self, method: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a method of this store in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, method, *arguments)

    def menu(self) -> Menu:
        """The menu with its current stock."""
        with self._database.reading() as db:
            return Menu(self.restaurant, self.currency, tuple(read_items(db)))

    def look_up(self, name: str) -> dict[str, Any]:
        """Description, prices and availability of an item; of all items for an empty name.

        Raises:
            ToolProblem: There is no such item.
        """
        items: Sequence[MenuItem] = self.menu().items
        if name:
            items = find_item(items, name) or _refuse_unknown(items, name)
        return {"items": [self._described(item) for item in items]}

    def add(
        self, call: str, tool_call: str, name: str, quantity: int, size: str = "", note: str = ""
    ) -> dict[str, Any]:
        """Add an item to a call's open order; create the order if the call has no open one.

        Raises:
            ToolProblem: There is no such item or size, or not so many of it.
        """

        def add(db: sqlite3.Connection) -> dict[str, Any]:
            item = _one_item(db, name)
            chosen = _choose_size(item, size or size_in(item, name))
            number = open_order(db, call)
            note_of_line = "" if note.lower() == NO_NOTE else note
            lines = read_lines(db, number)
            same = [
                line
                for line in lines
                if (line.item, line.size) == (item.name, chosen)
                and line.note.lower() == note_of_line.lower()
            ]
            old = [line.quantity for line in same]
            key = (item.name, chosen, same[0].note if same else note_of_line)
            added = Line(*key, quantity, item.prices[chosen])
            _check_quantity(item, quantities(lines).get(item.name, 0) + quantity)
            if not same and len(lines) >= MAX_LINES:
                raise ToolProblem(f"An order has at most {MAX_LINES} lines. Nothing was changed.")
            write_line(db, number, Line(*key, sum(old, quantity), item.prices[chosen]))
            return self._changed(db, number, f"Added {added}.")

        return self._once(call, tool_call, ["add", name, quantity, size, note], add)

    def change(
        self,
        call: str,
        tool_call: str,
        name: str,
        quantity: int,
        size: str = "",
        note: str = "",
    ) -> dict[str, Any]:
        """Set how many of an item the open order contains; 0 takes it off.

        Args:
            call: The call.
            tool_call: Id of the tool call.
            name: The item.
            quantity: How many, at least 0.
            size: Its size; may be empty if the order contains the item in one size.
            note: Its note, or ``NO_NOTE`` for a line without one; may be empty if the order
                contains the item in one line.

        Raises:
            ToolProblem: The order does not contain it, or it is not clear which line is meant.
        """

        def change(db: sqlite3.Connection) -> dict[str, Any]:
            order = self._open(db, call)
            item = _one_item(db, name)
            old = _one_line(order, item, (size or size_in(item, name)).lower(), note)
            assert order is not None, "it has a line"
            if quantity > old.quantity:
                _check_quantity(item, order.quantities[item.name] - old.quantity + quantity)
            write_line(db, order.number, Line(old.item, old.size, old.note, quantity, old.cents))
            return self._changed(db, order.number, f"Instead of {old}, it is now {quantity}.")

        return self._once(call, tool_call, ["change", name, quantity, size, note], change)

    def place(self, call: str) -> dict[str, Any]:
        """Place the open order of a call: take its items from the stock and write its receipt.

        A call whose order is placed, and which has ordered nothing since, gets the same answer
        again.

        Raises:
            ToolProblem: The order is empty, or an item has been sold in the meantime.
        """
        with self._database.transaction() as db:
            order = self._shown(db, call)
            if order is None or not order.lines:
                raise ToolProblem("The order is empty. Add something first.")
            if not order.placed:
                order = place_order(db, order, self.restaurant)
        total = money(order.cents, order.currency)
        result = f"Order {order.number} is placed: {order}. The total is {total}."
        return {"result": result, **order.as_result()}

    def order(self, call: str) -> Order | None:
        """The order of a call that is open and not empty, or else the last that it has placed."""
        with self._database.reading() as db:
            return self._shown(db, call)

    def current(self, call: str) -> Order | None:
        """The open order of a call, even if it is empty, or else the last that it has placed."""
        with self._database.reading() as db:
            return self._open(db, call) or self._shown(db, call)

    def latest(self, count: int) -> list[Order]:
        """The newest orders that are not empty, the newest first."""
        where = 'id IN (SELECT "order" FROM lines) ORDER BY id DESC LIMIT ?'
        with self._database.reading() as db:
            return read_orders(db, self.currency, where, (count,))

    def receipts(self) -> list[str]:
        """The receipts of all placed orders, the oldest first."""
        with self._database.reading() as db:
            rows = db.execute("SELECT receipt FROM orders WHERE placed IS NOT NULL ORDER BY id")
            return [row["receipt"] for row in rows]

    def _once(
        self,
        call: str,
        tool_call: str,
        request: list[Any],
        change: Callable[[sqlite3.Connection], dict[str, Any]],
    ) -> dict[str, Any]:
        """Make a change and store its answer, or return the answer that is stored already."""
        with self._database.transaction() as db:
            # Some servers give the same id to different tool calls of one step.
            key = (call, tool_call, json.dumps(request))
            row = db.execute(
                "SELECT answer FROM tool_calls WHERE call = ? AND id = ? AND request = ?", key
            ).fetchone()
            if row is not None:
                stored: dict[str, Any] = json.loads(row["answer"])
                return stored
            answer = change(db)
            db.execute("INSERT INTO tool_calls VALUES (?, ?, ?, ?)", (*key, json.dumps(answer)))
            return answer

    def _described(self, item: MenuItem) -> dict[str, Any]:
        prices = {size: money(cents, self.currency) for size, cents in item.prices.items()}
        return {
            "name": item.name,
            "description": item.description,
            "price": prices[ONE_SIZE] if item.has_one_price else prices,
            "left": item.stock,
        }

    def _open(self, db: sqlite3.Connection, call: str) -> Order | None:
        where = "call = ? AND placed IS NULL"
        return next(iter(read_orders(db, self.currency, where, (call,))), None)

    def _shown(self, db: sqlite3.Connection, call: str) -> Order | None:
        """The newest order of a call that is not empty."""
        where = 'call = ? AND id IN (SELECT "order" FROM lines) ORDER BY id DESC LIMIT 1'
        return next(iter(read_orders(db, self.currency, where, (call,))), None)

    def _changed(self, db: sqlite3.Connection, number: int, result: str) -> dict[str, Any]:
        [order] = read_orders(db, self.currency, "id = ?", (number,))
        return {"result": result, **order.as_result()}


def _one_item(db: sqlite3.Connection, name: str) -> MenuItem:
    items = read_items(db)
    found = find_item(items, name) or _refuse_unknown(items, name)
    if len(found) > 1:
        names = " or ".join(item.name for item in found)
        raise ToolProblem(f"{name!r} may be {names}. Ask which one.")
    return found[0]


def _refuse_unknown(items: Sequence[MenuItem], name: str) -> NoReturn:
    nearest = ", ".join(nearest_names(items, name))
    raise ToolProblem(f"There is no {name!r} on the menu. The nearest is: {nearest}.")


def _choose_size(item: MenuItem, size: str) -> str:
    """The size of a new line."""
    size = size.lower()
    if size in item.prices:
        return size
    if len(item.prices) == 1:
        if not size:
            return next(iter(item.prices))
        raise ToolProblem(f"{item.name} comes in one size only; leave the size empty.")
    problem = f"there is no size {size!r}" if size else "the size is missing"
    raise ToolProblem(
        f"{item.name} comes in {' and '.join(item.prices)}; {problem}. Ask which one."
    )


def _one_line(order: Order | None, item: MenuItem, size: str, note: str) -> Line:
    """The line of an open order that a change means."""
    lines = order.lines if order else ()
    found = [
        line
        for line in lines
        if line.item == item.name
        and size in ("", line.size)
        and note.lower() in ("", (line.note or NO_NOTE).lower())
    ]
    if not found:
        raise ToolProblem(f"The order does not contain that. It contains {order or 'nothing'}.")
    if len(found) > 1:
        listed = " and ".join(map(str, found))
        raise ToolProblem(f"The order contains {listed}. Ask which one is to change.")
    return found[0]


def _check_quantity(item: MenuItem, wanted: int) -> None:
    """Refuse more of an item than are left, or than one order may contain."""
    if wanted > item.stock:
        raise ToolProblem(
            f"Only {item.stock} {item.name} are left; the order would have {wanted}. Nothing was "
            "changed."
        )
    if wanted > MAX_QUANTITY:
        raise ToolProblem(
            f"At most {MAX_QUANTITY} {item.name} are possible in one order; that would be "
            f"{wanted}. Nothing was changed."
        )
