"""Measures the callbacks of sessions, which share one thread, and gives up those that block it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Protocol

from loguru import logger

from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import PersonaPlexError

CHECK_SECONDS = 0.25
"""Interval at which an engine calls ``CallbackGuard.check``."""
_WARN_CHECKS = 4
_STUCK_CHECKS = 20
STUCK_SECONDS = CHECK_SECONDS * _STUCK_CHECKS
"""A callback that has not returned after this time ends its session."""
_LOG_SECONDS = 5.0


class CallbackAbandoned(BaseException):
    """Raised when a callback returns that ``CallbackGuard`` has given up.

    Not an ``Exception``: it must pass everything up to the thread's first function.
    """

    def __init__(self, call: RunningCallback):
        super().__init__(call.name)
        self.call = call


class Owner(Protocol):
    """The session that a callback belongs to.

    Attributes:
        id: Its public id.
        error: The error that ended it.
    """

    id: str
    error: PersonaPlexError | None

    def end(self, error: PersonaPlexError | None) -> None:
        """Report its end."""


class RunningCallback:
    """A callback that is running.

    Attributes:
        owner: Its session.
        name: Such as ``on_frame``.
        checks: How often ``CallbackGuard.check`` has found it running.
        abandoned: Whether it has been given up.
    """

    __slots__ = ("abandoned", "checks", "name", "owner", "started")

    def __init__(self, owner: Owner, name: str):
        self.owner = owner
        self.name = name
        self.started = time.monotonic()
        self.checks = 0
        self.abandoned = False


class CallbackGuard:
    """Runs the callbacks of one thread, and reports those that are slow or never return.

    Attributes:
        slow: Callbacks so far that took longer than a frame.
        stuck: Callbacks so far that were given up.

    Example::

        guard = CallbackGuard()
        guard.run(session, "on_frame", on_frame, frame)  # on the engine's thread
        call = guard.check()  # on another thread, every CHECK_SECONDS
    """

    def __init__(self) -> None:
        self.slow = 0
        self.stuck = 0
        self._running: RunningCallback | None = None
        self._lock = threading.Lock()  # held for the decision whether a callback is given up
        self._logged = -_LOG_SECONDS

    def run(self, owner: Owner, name: str, callback: Callable[..., object], *args: object) -> None:
        """Call a callback, and measure it.

        Raises:
            CallbackAbandoned: It was given up meanwhile; whatever it raised is lost.
            BaseException: What the callback raises.
        """
        outer, call = self._running, RunningCallback(owner, name)
        self._running = call
        try:
            callback(*args)
        finally:
            seconds = time.monotonic() - call.started
            with self._lock:
                if self._running is call:  # not so if ``forget`` was called
                    self._running = outer
            if call.abandoned:
                raise CallbackAbandoned(call)
            if seconds > FRAME_SECONDS and not _only_queues(callback):
                self._count_slow(call, seconds)

    def _count_slow(self, call: RunningCallback, seconds: float) -> None:
        self.slow += 1
        now = call.started + seconds
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.bind(session=call.owner.id).warning(
                "the session's {} callback took {:.0f} ms and delayed every caller: callbacks must "
                "return at once",
                *(call.name, seconds * 1e3),
            )

    @property
    def blocked(self) -> bool:
        """Whether a callback that was given up still has not returned."""
        call = self._running
        return call is not None and call.abandoned

    def check(self) -> RunningCallback | None:
        """Give up the running callback if it has been running for ``STUCK_SECONDS``.

        Checks are counted, not seconds: a process that was suspended must not lose a session.

        Returns:
            The callback if this call has given it up. Its thread is lost until it returns.
        """
        call = self._running
        if call is None or call.abandoned:
            return None
        call.checks += 1
        log = logger.bind(session=call.owner.id)
        if call.checks == _WARN_CHECKS:
            log.warning(
                "the session's {} callback has not returned for {:g} s and blocks every caller",
                *(call.name, CHECK_SECONDS * _WARN_CHECKS),
            )
        if call.checks < _STUCK_CHECKS:
            return None
        with self._lock:
            if self._running is not call:
                return None
            call.abandoned = True
        self.stuck += 1
        log.error("{}; the session ends", stuck_message(call))
        return call

    def forget(self) -> None:
        """Forget the callback that was given up: another thread continues."""
        self._running = None


def _only_queues(callback: Callable[..., object]) -> bool:
    """Whether a callback puts into a ``SimpleQueue``, which never waits for anything."""
    return isinstance(getattr(callback, "__self__", None), SimpleQueue)


def stuck_message(call: RunningCallback) -> str:
    """Return why the session of a callback that was given up ends."""
    return (
        f"the session's {call.name} callback has not returned for {STUCK_SECONDS:g} s; callbacks "
        "must return at once"
    )


def run_all(callbacks: Iterable[Callable[[], object]]) -> None:
    """Call all callbacks, even after one has raised.

    Raises:
        CallbackAbandoned: One was given up. It replaces the errors of others: the thread must end.
        BaseException: The error of the first callback that raised.
    """
    failure: BaseException | None = None
    for callback in callbacks:
        try:
            callback()
        except CallbackAbandoned as abandoned:
            failure = abandoned
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure
