"""The connection of one call to its backend worker, by Pipecat's own protocol.

The only module that imports names that Pipecat does not document. Their behaviour is tested in
``tests/service/test_backend_link.py``; releases 1.13 and 1.14 have the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pipecat
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.workers.llm.backend_llm_worker import (
    BACKEND_PAIRING_INSTRUCTION,
    BackendError,
    BackendEvent,
    BackendIdle,
    BackendLLMWorker,
    BackendOutput,
    BackendToolCall,
)

from pipecat_personaplex.errors import ConfigError

try:
    from pipecat.workers.llm.backend_llm_worker import _BackendSession, _render_transcript_request
except ImportError as error:  # only a delegation needs them
    _missing: ImportError | None = error
else:
    _missing = None

__all__ = [
    "BACKEND_PAIRING_INSTRUCTION",
    "BackendError",
    "BackendEvent",
    "BackendIdle",
    "BackendLLMWorker",
    "BackendLink",
    "BackendOutput",
    "BackendToolCall",
    "BackendUnavailable",
    "transcript_request",
]

ATTACH_SECONDS = 5.0
"""How long a request waits for the backend to be attached, and for its acknowledgement."""

_RETRY_SECONDS = 1.0  # between attempts to attach
_POLL_SECONDS = 0.02  # between looks whether the worker has accepted the attachment


class BackendUnavailable(Exception):
    """The backend did not take a request."""


def transcript_request(messages: Sequence[LLMContextMessage], *, first: bool) -> str:
    """A request that shows the backend what was said, and asks it to act on that.

    Args:
        messages: Messages of the conversation; those of users and assistants are included.
        first: Whether this is the first request of the call.
    """
    return _render_transcript_request(messages, first=first)


class BackendLink:
    """Attaches a call to a backend and stays attached: after a failure it attaches again.

    Args:
        front: The service that delegates; its pipeline worker attaches.
        backend: A worker, which becomes a child of the pipeline worker, or the name of one that
            is registered elsewhere.
        on_event: Called with each event of the backend, in order.
        on_lost: Called with the reason when an attached backend goes away.

    Raises:
        ConfigError: This release of Pipecat lacks the protocol.
    """

    def __init__(
        self,
        front: FrameProcessor,
        backend: BackendLLMWorker | str,
        on_event: Callable[[BackendEvent], Awaitable[None]],
        on_lost: Callable[[str], None],
    ):
        if _missing is not None:
            raise ConfigError(
                "delegation= needs the BackendLLMWorker of Pipecat 1.13 or 1.14, and Pipecat "
                f"{pipecat.version()} has another one ({_missing}); install pipecat-ai<1.15"
            )
        self._front = front
        self._backend = backend
        self._on_event = on_event
        self._on_lost = on_lost
        self._session: _BackendSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = False  # reported, and not attached again

    async def open(self) -> None:
        """Register the worker and begin to attach; the pipeline must run under a runner."""
        if isinstance(self._backend, BackendLLMWorker):
            await self._front.pipeline_worker.add_workers(self._backend)
        self._attach()

    async def close(self) -> None:
        """Let go of the backend, which stops its work."""
        task, self._task = self._task, None
        if task is not None:
            await self._front.cancel_task(task)

    async def attach_again(self) -> None:
        """Let go of the backend, which stops its work, and attach to it again."""
        await self.close()
        self._attach()

    async def send(self, text: str) -> bool:
        """Put a request to the backend.

        Returns:
            Whether the backend had nothing else to do.

        Raises:
            BackendUnavailable: It is not attached, or did not acknowledge the request in time.
        """
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                session = await self._accepted_session()
                idle = await session.send(text) == "idle"
                self._lost = False
                return idle
        except TimeoutError:
            raise BackendUnavailable(
                f"the backend {self._name} took no request within {ATTACH_SECONDS:g} s"
            ) from None
        except Exception as error:
            raise BackendUnavailable(
                f"the backend {self._name} took no request: {error}"
            ) from error

    def works_on(self) -> bool | None:
        """Whether the backend goes on although it has reported that it is idle.

        Pipecat's worker reports that too early if a request has waited for the end of a run, and
        does not report the end of the next run. This makes it report that end as well.

        Returns:
            None if that is unknown, for a worker that is registered elsewhere.
        """
        worker = self._backend
        if isinstance(worker, str):
            return None
        if not worker.working and worker._request_awaiting_run is None:
            return False
        worker._idle_announced = False
        return True

    @property
    def filters(self) -> bool:
        """Whether the worker may drop messages on purpose; unknown of one registered elsewhere."""
        return not isinstance(self._backend, str) and self._backend._transform_output is not None

    @property
    def _name(self) -> str:
        return self._backend if isinstance(self._backend, str) else self._backend.name

    async def _accepted_session(self) -> _BackendSession:
        """The session, as soon as the worker has accepted it.

        A worker that another call is attached to takes messages from anyone, so nothing may be
        sent before it has named its capabilities: it does that when it accepts.
        """
        while self._session is None or not self._session.capabilities:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return self._session

    def _attach(self) -> None:
        self._task = self._front.create_task(self._follow(), f"{self._front}::backend")

    async def _follow(self) -> None:
        while True:
            reason = await self._follow_once()
            if not self._lost:
                self._lost = True
                self._on_lost(f"the backend {self._name} is gone: {reason}")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_once(self) -> str:
        """Attach, and pass events on until the backend is gone; returns why it is."""
        worker: Any = self._front.pipeline_worker
        reason = "it ended"
        try:
            async with _BackendSession(worker, self._name, timeout_secs=ATTACH_SECONDS) as session:
                self._session = session
                async for event in session:
                    await self._on_event(event)
        except Exception as error:
            reason = str(error) or repr(error)
        finally:
            self._session = None
        return reason
