"""Erlang's formulas for calls that arrive at random: how many find every slot taken."""

from __future__ import annotations


def erlang_b(load: float, slots: int) -> float:
    """Share of calls that are refused, if refused calls do not come back.

    Args:
        load: Offered load: mean number of calls at once if there were no limit.
        slots: Calls that can run at once.
    """
    # 1 / B(n) = 1 + n / load * 1 / B(n - 1), with B(0) = 1: stable for any number of slots.
    inverse = 1.0
    for count in range(1, slots + 1):
        inverse = 1.0 + inverse * count / load
    return 1.0 / inverse


def erlang_c(load: float, slots: int) -> float:
    """Share of calls that wait, if every call waits for a slot; 1 if the load is too high."""
    if load >= slots:
        return 1.0
    refused = erlang_b(load, slots)
    return refused / (1.0 - load / slots * (1.0 - refused))


def load_for(slots: int, refused: float) -> float:
    """The offered load at which this share of calls is refused."""
    low, high = 0.0, max(1.0, 2.0 * slots / (1.0 - refused))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if erlang_b(middle, slots) < refused else (low, middle)
    return low


def slots_for(load: float, refused: float) -> int:
    """The smallest number of slots with which at most this share of calls is refused."""
    inverse, slots = 1.0, 0
    while 1.0 / inverse > refused:
        slots += 1
        inverse = 1.0 + inverse * slots / load
    return slots
