"""An order, as it is shown, said and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bots.order_window.menu import ONE_SIZE, money

_RECEIPT_WIDTH = 40


@dataclass(frozen=True)
class Line:
    """One line of an order; ``cents`` is the price of one."""

    item: str
    size: str
    note: str
    quantity: int
    cents: int

    def __str__(self) -> str:
        size = "" if self.size == ONE_SIZE else f"{self.size} "
        note = f" ({self.note})" if self.note else ""
        return f"{self.quantity} {size}{self.item}{note}"


@dataclass(frozen=True)
class Order:
    """An order as it is now.

    Attributes:
        number: Number of the order.
        call: The call that it belongs to.
        placed: When it was placed, ISO 8601; empty while it is open.
        lines: In the order in which they were added.
        currency: Sign of the currency.
    """

    number: int
    call: str
    placed: str
    lines: tuple[Line, ...]
    currency: str

    @property
    def cents(self) -> int:
        """The total."""
        return sum(line.quantity * line.cents for line in self.lines)

    @property
    def quantities(self) -> dict[str, int]:
        """How many of each item, over all sizes and notes."""
        return quantities(self.lines)

    def __str__(self) -> str:
        return ", ".join(map(str, self.lines)) or "nothing"

    def as_result(self) -> dict[str, Any]:
        """The order as an LLM reads it in the result of a tool."""
        return {
            "order": [str(line) for line in self.lines],
            "total": money(self.cents, self.currency),
        }

    def as_message(self) -> dict[str, Any]:
        """The order as JSON for a page; each line and the total with a price as it is printed."""
        lines = [
            asdict(line) | {"price": money(line.quantity * line.cents, self.currency)}
            for line in self.lines
        ]
        return {
            "number": self.number,
            "state": "placed" if self.placed else "open",
            "lines": lines,
            "total": money(self.cents, self.currency),
        }


def quantities(lines: Sequence[Line]) -> dict[str, int]:
    """How many of each item, over all sizes and notes."""
    wanted: dict[str, int] = {}
    for line in lines:
        wanted[line.item] = wanted.get(line.item, 0) + line.quantity
    return wanted


def receipt(order: Order, restaurant: str) -> str:
    """The receipt of a placed order, as text of 40 columns."""
    rule = "-" * _RECEIPT_WIDTH
    lines = [restaurant, f"Order {order.number}, {order.placed}", rule]
    for line in order.lines:
        lines.append(_columns(str(line), money(line.quantity * line.cents, order.currency)))
    return "\n".join([*lines, rule, _columns("Total", money(order.cents, order.currency))])


def _columns(left: str, right: str) -> str:
    return f"{left:<{_RECEIPT_WIDTH - len(right) - 1}} {right}"
