"""What becomes of running engines when their process forks, when it collects garbage, and at exit.

A fork copies the objects of an engine and none of its threads: the child must not wait for them. At
exit, the interpreter would end while a thread is still inside the model, and abort.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class Running(Protocol):
    """An engine whose thread runs."""

    def lose_thread(self) -> None:
        """Forget the thread and replace every lock: this process is a child that has neither."""

    def stop_at_exit(self) -> None:
        """Stop; must return after a few seconds."""


_running: WeakSet[Running] = WeakSet()
_installed = False


def register(engine: Running) -> None:
    """Have a running engine notified of a fork and of the exit; registering again does nothing."""
    global _installed
    _running.add(engine)
    if not _installed:
        # At the first start, not on import: exit handlers run in reverse order, so that engines
        # stop before the libraries that they use.
        _installed = True
        atexit.register(_exit)
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=_forked)


def unregister(engine: Running) -> None:
    """Forget an engine that has stopped."""
    _running.discard(engine)


@contextmanager
def frozen_objects() -> Generator[None, None, None]:
    """Exclude the objects that exist now from garbage collection, until the context ends.

    A program that serves calls enters it once its model is loaded. A full collection scans all
    imported modules and stalls every call for 200 ms, so the interpreter makes it seldom: in a
    server, 7 MiB of garbage of thousands of sessions gathered meanwhile.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        # At the exit they must be collected, else libraries report them as leaked.
        gc.unfreeze()


def _forked() -> None:
    for engine in list(_running):
        engine.lose_thread()
    _running.clear()


def _exit() -> None:
    for engine in list(_running):
        engine.stop_at_exit()
