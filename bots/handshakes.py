"""Connections whose handshake is not complete: they hold no slot, and there is a limit of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Handshakes:
    """Runs handshakes, each within a time limit, and at most a number of them at once.

    When the limit is reached, a new handshake ends the oldest one: a caller completes its handshake
    in a second, while connections that wait for longer are those of an attacker or of a broken
    network.

    Args:
        max_waiting: Handshakes at once.

    Example::

        handshakes = Handshakes(64)
        transport = await handshakes.run(open_transport(runner_args), seconds=20)
    """

    def __init__(self, max_waiting: int):
        self._max_waiting = max_waiting
        self._waiting: dict[asyncio.Task[Any], None] = {}  # the oldest first

    async def run(self, handshake: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """Run one handshake and return its result.

        Args:
            handshake: The handshake.
            seconds: How long it may take; None for no limit.

        Raises:
            ValueError: It took too long, or was ended for a newer one.
        """
        while len(self._waiting) >= self._max_waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        task = asyncio.ensure_future(handshake)
        self._waiting[task] = None
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        finally:
            self._waiting.pop(task, None)
            task.cancel()
        if not done:
            raise ValueError(f"the caller did not connect within {seconds:g} s")
        if task.cancelled():
            raise ValueError("the bot stops, or too many connections wait for their handshake")
        return task.result()

    def end(self) -> None:
        """End all handshakes, such as when the bot stops."""
        for task in self._waiting:
            task.cancel()
