"""The thread of a remote engine, with its event loop and the watch over the callbacks on it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress

from loguru import logger

from pipecat_personaplex.callbacks import CHECK_SECONDS, CallbackGuard, Owner, stuck_message
from pipecat_personaplex.errors import EngineStopped, SessionFailed

STOPPED = "the engine is not running; use it in a with statement, or call start()"
FORKED = "this process was forked from the one in which the engine runs; call start() here"


class LoopThread:
    """Runs a coroutine on a thread with an event loop of its own.

    Args:
        main: The coroutine; it must return soon after its argument is set.
        abandon: Called on another thread to end a session whose callback does not return.

    Attributes:
        callbacks: Runs all callbacks.
        lock: Guards this state; the owner may use it for what must change together with it.

    Example::

        thread = LoopThread(main, abandon)
        with thread.lifecycle:
            thread.start()
        thread.post(work)
        thread.stop()
    """

    def __init__(
        self,
        main: Callable[[asyncio.Event], Coroutine[None, None, None]],
        abandon: Callable[[Owner, SessionFailed], None],
    ):
        self._main, self._abandon = main, abandon
        self._of_parent: list[object] = []
        self._reset(STOPPED)

    def _reset(self, why_stopped: str) -> None:
        self.callbacks = CallbackGuard()
        self.lock = threading.Lock()
        # Held while the thread is started or joined; never acquired on the thread itself.
        self.lifecycle = threading.Lock()
        self._why_stopped = why_stopped
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether the coroutine has begun and has not been stopped."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and self._loop is not None and not self._stopping

    def require_running(self) -> None:
        """Raise ``EngineStopped`` unless it runs."""
        if not self.running:
            raise EngineStopped(self._why_stopped)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.current_thread() is self._thread

    @property
    def blocked(self) -> bool:
        """Whether a callback that was given up still has not returned."""
        return self.callbacks.blocked

    @property
    def stopping(self) -> bool:
        """Whether it was stopped and may not have ended."""
        return self._stopping

    def start(self) -> None:
        """Start it after ``join``; call this with ``lifecycle`` held.

        Raises:
            EngineStopped: A callback of the last run has not returned.
        """
        if self._thread is not None:
            raise EngineStopped("a callback of the engine's last run has not returned yet")
        self._why_stopped = STOPPED
        self._stopping = False
        self._loop = self._stop = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="personaplex-remote", daemon=True
        )
        self._thread.start()
        threading.Thread(
            target=self._watch, args=(self._thread,), name="personaplex-watch", daemon=True
        ).start()

    async def _run(self) -> None:
        stop = asyncio.Event()
        with self.lock:
            self._stop, self._loop = stop, asyncio.get_running_loop()
            if self._stopping:  # stopped before this thread got here
                stop.set()
        await self._main(stop)

    def request_stop(self) -> None:
        """Stop without waiting."""
        with self.lock:
            self._stopping = True
            if self._stop is not None:
                self.post(self._stop.set)

    def join(self, timeout: float | None) -> None:
        """Stop and wait for the end; returns without it if a callback blocks the thread.

        Call this with ``lifecycle`` held. It does nothing if there is no thread.

        Args:
            timeout: Seconds to wait at most; None for no limit.
        """
        if self._thread is None:
            return
        self.request_stop()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while self._thread.is_alive():
            self._thread.join(CHECK_SECONDS)
            if self._thread.is_alive() and (self.blocked or time.monotonic() > deadline):
                logger.warning("the remote engine has stopped without its thread, which is blocked")
                return
        self._thread = None

    def post(self, callback: Callable[[], object]) -> None:
        """Have the thread call ``callback``; does nothing if it has ended."""
        with suppress(RuntimeError):  # the event loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback)

    def lose(self) -> None:
        """Forget the thread: this process is a fork of the one in which it runs."""
        # The event loop shares its files with the other process, and must not be closed here.
        self._of_parent.append(self._loop)
        self._reset(FORKED)

    def _watch(self, thread: threading.Thread) -> None:
        while thread.is_alive():
            thread.join(CHECK_SECONDS)
            call = self.callbacks.check()
            if call is not None:
                self._abandon(call.owner, SessionFailed(stuck_message(call)))
