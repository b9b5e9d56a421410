"""A running server that can be asked whether anything is left of its clients."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from tests.helpers.servers import RunningServer

WAIT = 20.0
"""Seconds after which a test gives up."""

_OWN_TASKS = ("Host.", "Server.", "Event.", "Door.")


class LiveServer(RunningServer):
    """``RunningServer``, and ``check_clean``."""

    def __enter__(self) -> LiveServer:
        super().__enter__()
        return self

    @property
    def sessions(self) -> int:
        return self.state.door.sessions

    @property
    def tasks(self) -> list[str]:
        """Tasks of connections and sessions."""
        names = self.call(
            lambda: [getattr(t.get_coro(), "__qualname__", "?") for t in asyncio.all_tasks()]
        )
        return [name for name in names if not name.startswith(_OWN_TASKS)]

    def wait_until(self, true: Callable[[], object], seconds: float = WAIT) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come true"
            time.sleep(0.01)

    async def until(self, true: Callable[[], object]) -> None:
        await asyncio.to_thread(self.wait_until, true)

    def check_clean(self) -> None:
        """Nobody is left: no session, no ticket, no connection, no task."""
        self.wait_until(lambda: self.state.engine.stats().sessions == 0)
        self.wait_until(lambda: self.sessions == 0)
        self.wait_until(lambda: self.state.door.connections == 0)
        self.wait_until(lambda: not self.tasks)


def open_files() -> int:
    """File descriptors of this process, which the server is in."""
    return len(os.listdir("/proc/self/fd"))
