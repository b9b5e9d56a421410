"""The model thread: it works until it is stopped, and is replaced if a callback blocks it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from loguru import logger

from pipecat_personaplex.callbacks import (
    CHECK_SECONDS,
    CallbackAbandoned,
    CallbackGuard,
    Owner,
    RunningCallback,
    stuck_message,
)
from pipecat_personaplex.errors import (
    EngineFailed,
    EngineStopped,
    PersonaPlexError,
    SessionFailed,
)

_SWITCH_SECONDS = 5e-4
"""Longest time for which another busy Python thread keeps the interpreter's lock from the model
thread, which needs it for every operation. Python's default is 5 ms."""

_MAX_LOST_THREADS = 8
"""Threads that callbacks may block at once. Each holds memory; more of them mean that the process
is broken, and the engine fails."""


class ModelThread:
    """Runs an engine's work on one thread, and watches over the callbacks that this work calls.

    A thread cannot be interrupted. If a callback does not return, another thread continues the
    work and the blocked one ends as soon as its callback returns.

    Args:
        prepare: Prepares the calling thread; called first on each.
        work: Makes one pass; returns whether there is more to do without waiting.
        finish: Called last, with the reason: ends every session that is left. If a callback
            blocks it, another thread calls it again.
        abandon: Called on another thread to end a session whose callback does not return. The
            callbacks that report its end follow on the blocked thread.

    Attributes:
        callbacks: Runs all callbacks.
        failure: Why the engine has failed, if it has.

    Example::

        thread = ModelThread(prepare, loop.run_once, end_all, abandon)
        thread.start()
        thread.wake()
        thread.stop()
    """

    def __init__(
        self,
        prepare: Callable[[], None],
        work: Callable[[], bool],
        finish: Callable[[PersonaPlexError], None],
        abandon: Callable[[Owner, SessionFailed], None],
    ):
        self.callbacks = CallbackGuard()
        self.failure: EngineFailed | None = None
        self._prepare, self._work, self._finish = prepare, work, finish
        self._abandon = abandon
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._lost: list[threading.Thread] = []
        self._finished = threading.Event()
        # Held while the thread is started or joined; never taken on the model thread.
        self._lifecycle = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether it works and has not been stopped."""
        return self._thread is not None and not self._stopping

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.current_thread() is self._thread

    def wake(self) -> None:
        """Let it make a pass."""
        self._wake.set()

    def require_healthy(self) -> None:
        """Raise ``EngineFailed`` if the engine has failed."""
        if self.failure is not None:
            # Raise a fresh exception: re-raising one object accumulates tracebacks.
            raise EngineFailed(str(self.failure)) from self.failure

    def start(self) -> None:
        """Start it; does nothing if it runs.

        Raises:
            EngineFailed: The engine has failed before.
            EngineStopped: Called from a callback of an engine that is stopping.
        """
        if self.is_current:
            if self._stopping:
                raise EngineStopped("the engine is stopping; start it again from another thread")
            return
        with self._lifecycle:
            self.require_healthy()
            if self._thread is not None:
                if not self._finished.is_set() and not self._stopping:
                    return
                self._join(None)  # stopped from a callback, and about to end
            self._stopping = False
            self._finished = threading.Event()
            self._launch()
            threading.Thread(
                target=self._watch, args=(self._finished,), name="personaplex-watch", daemon=True
            ).start()

    def stop(self, timeout: float | None = None) -> None:
        """Stop and wait for the end; does nothing if it does not run.

        Called on the thread itself, from a callback, it returns at once.

        Args:
            timeout: Seconds to wait at most; None for no limit.
        """
        if self.is_current:
            self._stopping = True
            return
        with self._lifecycle:
            if self._thread is not None:
                self._stopping = True
                self._wake.set()
                self._join(timeout)
                self._thread = None

    def lose_thread(self, failure: EngineFailed) -> None:
        """Fail without a thread: this process is a fork of the one in which it ran."""
        self._lifecycle = threading.Lock()
        self.callbacks = CallbackGuard()
        self.failure, self._thread = failure, None

    def _launch(self) -> None:
        self._thread = threading.Thread(target=self._run, name="personaplex-engine", daemon=True)
        self._thread.start()

    def _join(self, timeout: float | None) -> None:
        # Not the thread, which may be replaced while this waits.
        if self._finished.wait(timeout) and self._thread is not None:
            self._thread.join()

    # On the model thread.

    def _run(self) -> None:
        sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
        try:
            self._finish(self._work_until_stopped())
        except CallbackAbandoned as abandoned:  # Another thread has taken over.
            owner = abandoned.call.owner
            report_end(owner, owner.error or SessionFailed(stuck_message(abandoned.call)))
        else:
            self._finished.set()

    def _work_until_stopped(self) -> PersonaPlexError:
        """Work; return why the sessions end."""
        try:
            self._prepare()
            while not self._stopping and self.failure is None:
                self._wake.wait()
                self._wake.clear()
                while not self._stopping and self._work():
                    pass
        except CallbackAbandoned:
            raise
        except BaseException as error:
            logger.opt(exception=error).error("the model thread failed; every session ends")
            self.failure = EngineFailed(
                f"the engine failed and every session has ended: {type(error).__name__}: {error}"
            )
            self.failure.__cause__ = error
        return self.failure or EngineStopped("the engine was stopped")

    # On the watching thread.

    def _watch(self, finished: threading.Event) -> None:
        while not finished.wait(CHECK_SECONDS):
            call = self.callbacks.check()
            if call is not None:
                self._replace(call)

    def _replace(self, call: RunningCallback) -> None:
        assert self._thread is not None
        self._lost = [thread for thread in (*self._lost, self._thread) if thread.is_alive()]
        self._abandon(call.owner, SessionFailed(stuck_message(call)))
        if len(self._lost) > _MAX_LOST_THREADS:
            self.failure = EngineFailed(
                f"{len(self._lost)} callbacks have not returned; the engine has ended every session"
            )
            logger.error("{}", self.failure)
        self.callbacks.forget()
        self._wake.set()
        self._launch()


def report_end(session: Owner, error: PersonaPlexError | None) -> None:
    """Report a session's end; a callback that raises must not end the thread.

    Raises:
        CallbackAbandoned: The callback did not return in time.
    """
    try:
        session.end(error)
    except CallbackAbandoned:
        raise
    except BaseException as raised:  # also CancelledError
        logger.bind(session=session.id).opt(exception=raised).error(
            "a callback at the session's end raised"
        )
