"""The asyncio task that runs a remote session from its opening to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from loguru import logger

from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineStopped,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
)
from pipecat_personaplex.remote.server import Channel, Server
from pipecat_personaplex.remote.server_pool import (
    combine_refusals,
    least_loaded,
    require_available,
)
from pipecat_personaplex.remote.session import RemoteSession

# The session itself is at fault: every other server would refuse it too.
_NO_FAILOVER = (PromptTooLong, ConfigError, BadMessage)


class SessionTask:
    """Opens a session at a server, runs its channel, and reports its end.

    Every method runs on the remote engine's thread.

    Args:
        session: The caller's side.
        servers: The servers to choose from.
        on_ended: Called with this task after the end has been reported to the caller.

    Attributes:
        refused: Whether no server took the session.
    """

    def __init__(
        self,
        session: RemoteSession,
        servers: Sequence[Server],
        on_ended: Callable[[SessionTask], object],
    ):
        self.session = session
        self.refused = False
        self._servers = servers
        self._on_ended = on_ended
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task on the running event loop."""
        self._task = asyncio.create_task(self._run())
        # Not in a finally of the coroutine: a task that is cancelled early never enters it.
        self._task.add_done_callback(self._finish)

    def wake(self) -> None:
        """Send what the session has queued, or end it if the caller has closed it."""
        if self.session.closed:
            self.cancel()
        elif self._channel is not None:
            self._channel.wake()

    def cancel(self) -> None:
        """End the session."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until the session has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        server, self._channel = await self._open()
        try:
            await self._channel.run()
        finally:
            server.release(self._channel)

    async def _open(self) -> tuple[Server, Channel]:
        """Open the session at the least loaded server that accepts it.

        Raises:
            PersonaPlexError: No server accepts it.
        """
        voice = self.session.persona.voice
        refusals: dict[Server, PersonaPlexError] = {}
        while (server := least_loaded(self._servers, voice, list(refusals))) is not None:
            try:
                channel = await server.open(self.session)
            except _NO_FAILOVER:
                self.refused = True
                raise
            except PersonaPlexError as refusal:
                refusals[server] = refusal
            else:
                self.session.control_refusal = server.control_refusal
                return server, channel
        self.refused = True
        if not refusals:  # every suitable server has gone since open_session was called
            require_available(self._servers, voice)
        raise combine_refusals(list(refusals.values()))

    def _finish(self, task: asyncio.Task[None]) -> None:
        try:
            self.session.end(None if self.session.closed else self._error_of(task))
        except BaseException as raised:  # also CancelledError: no callback may end the thread
            logger.bind(session=self.session.id).opt(exception=raised).error(
                "the session's on_end callback raised"
            )
        self._on_ended(self)

    def _error_of(self, task: asyncio.Task[None]) -> PersonaPlexError:
        """Why a session ended that the caller did not close."""
        error = EngineStopped("the engine was stopped") if task.cancelled() else task.exception()
        if isinstance(error, PersonaPlexError):
            return error
        logger.bind(session=self.session.id).opt(exception=error).error(
            "the remote session failed by an unexpected error"
        )
        failure = SessionFailed(f"the session failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
