"""Rows of the order database: reading items and orders, writing the lines of an order."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime

from bots.order_window.menu import MenuItem
from bots.order_window.order import Line, Order, receipt
from bots.tool_problem import ToolProblem


def read_items(db: sqlite3.Connection) -> list[MenuItem]:
    """All items with their prices, in the order of the menu."""
    prices: dict[int, dict[str, int]] = {}
    for row in db.execute("SELECT item, size, cents FROM prices ORDER BY id"):
        prices.setdefault(row["item"], {})[row["size"]] = row["cents"]
    return [
        MenuItem(
            row["name"],
            row["description"],
            tuple(json.loads(row["also"])),
            row["stock"],
            prices[row["id"]],
        )
        for row in db.execute("SELECT * FROM items ORDER BY id").fetchall()
        if row["id"] in prices
    ]


def read_orders(
    db: sqlite3.Connection, currency: str, where: str, parameters: tuple[object, ...]
) -> list[Order]:
    """Orders that a condition selects, the newest first."""
    rows = db.execute(f"SELECT * FROM orders WHERE {where}", parameters).fetchall()
    return [
        Order(row["id"], row["call"], row["placed"] or "", read_lines(db, row["id"]), currency)
        for row in rows
    ]


def read_lines(db: sqlite3.Connection, number: int) -> tuple[Line, ...]:
    """The lines of an order, in the order in which they were added."""
    rows = db.execute(
        "SELECT items.name, prices.size, lines.note, lines.quantity, lines.cents FROM lines "
        "JOIN prices ON prices.id = lines.price JOIN items ON items.id = prices.item "
        'WHERE lines."order" = ? ORDER BY lines.id',
        (number,),
    )
    return tuple(Line(*row) for row in rows)


def open_order(db: sqlite3.Connection, call: str) -> int:
    """Return the number of a call's open order; create the order if the call has no open one."""
    row = db.execute("SELECT id FROM orders WHERE call = ? AND placed IS NULL", (call,)).fetchone()
    if row is not None:
        number: int = row["id"]
        return number
    cursor = db.execute("INSERT INTO orders (call, opened) VALUES (?, ?)", (call, _now()))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def write_line(db: sqlite3.Connection, number: int, line: Line) -> None:
    """Write a line of an open order; a quantity of 0 removes it."""
    price = db.execute(
        "SELECT prices.id FROM prices JOIN items ON items.id = prices.item "
        "WHERE items.name = ? AND prices.size = ?",
        (line.item, line.size),
    ).fetchone()["id"]
    if line.quantity == 0:
        key = (number, price, line.note)
        db.execute('DELETE FROM lines WHERE "order" = ? AND price = ? AND note = ?', key)
        return
    db.execute(
        'INSERT INTO lines ("order", price, note, quantity, cents) VALUES (?, ?, ?, ?, ?) '
        'ON CONFLICT ("order", price, note) DO UPDATE SET quantity = excluded.quantity',
        (number, price, line.note, line.quantity, line.cents),
    )


def place_order(db: sqlite3.Connection, order: Order, restaurant: str) -> Order:
    """Take the items of an open order from the stock, and write its receipt.

    Raises:
        ToolProblem: Fewer are left than the order contains.
    """
    left = {item.name: item.stock for item in read_items(db)}
    for name, wanted in order.quantities.items():
        if wanted > left[name]:
            raise ToolProblem(
                f"Not placed: only {left[name]} {name} are left, and the order has {wanted}. "
                "Change the order first."
            )
        db.execute("UPDATE items SET stock = stock - ? WHERE name = ?", (wanted, name))
    placed = Order(order.number, order.call, _now(), order.lines, order.currency)
    db.execute(
        "UPDATE orders SET placed = ?, total = ?, receipt = ? WHERE id = ?",
        (placed.placed, placed.cents, receipt(placed, restaurant), placed.number),
    )
    return placed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
