"""The asyncio task that runs a remote session from its opening to its end.

A call whose server has died, has lost its session or is stopping moves to another server: the task
opens a session there with the call's history. The frames of the caller go on without a gap in
their indices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from loguru import logger

from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineDraining,
    EngineFailed,
    EngineStopped,
    EngineUnreachable,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.interface import Feature
from pipecat_personaplex.remote.server import Channel, Server, TakenOver
from pipecat_personaplex.remote.server_pool import (
    NO_FEATURES,
    combine_refusals,
    least_loaded,
    require_available,
)
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.tasks import run_until_first_ends, wait_until_cancelled

# The session itself is at fault: every other server would refuse it too.
_NO_FAILOVER = (PromptTooLong, ConfigError, BadMessage)
# The server is at fault, and the call may go on at another one.
_MOVES_AFTER = (SessionLost, EngineUnreachable, EngineFailed, EngineStopped, EngineDraining)


class SessionTask:
    """Opens a session at a server, runs its channel, and reports its end.

    Every method runs on the remote engine's thread.

    Args:
        session: The caller's side.
        servers: The servers to choose from.
        on_ended: Called with this task after the end has been reported to the caller.
        move_calls: Whether a call may move to another server.

    Attributes:
        refused: Whether no server took the session.
    """

    def __init__(
        self,
        session: RemoteSession,
        servers: Sequence[Server],
        on_ended: Callable[[SessionTask], object],
        *,
        move_calls: bool = False,
    ):
        self.session = session
        self.refused = False
        self._servers = servers
        self._on_ended = on_ended
        self._move_calls = move_calls
        self._server: Server | None = None
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: SessionFailed | None = None  # why ``wake`` has cancelled the task

    def start(self) -> None:
        """Start the task on the running event loop."""
        self._task = asyncio.create_task(self._run())
        # Not in a finally of the coroutine: a task that is cancelled early never enters it.
        self._task.add_done_callback(self._finish)

    def wake(self) -> None:
        """Send what the session has queued, or end it if the caller has closed it."""
        if self.session.closed:
            self.cancel()
            return
        try:
            self.session.run_callbacks()
        except SessionFailed as raised:
            self._failure = raised
            self.cancel()
            return
        if self._channel is not None:
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
        self._server, self._channel = await self._open()
        try:
            self._adapt(self._server)
            while True:
                await self._run_at(self._server, self._channel)
        finally:
            self._server.release(self._channel)

    async def _run_at(self, server: Server, channel: Channel) -> None:
        """Run the session at one server until the call has moved to another one.

        Raises:
            PersonaPlexError: The error that ended the session.
        """
        channel.can_move = lambda: self._can_move(server)
        try:
            await run_until_first_ends(channel.run(), self._wait_until_draining(server, channel))
            if not await self._move(f"{server.address.url} is stopping"):
                await channel.run()  # to its end
        except TakenOver as taken:  # the call goes on at the other client
            raise SessionLost(str(taken)) from taken
        except _MOVES_AFTER as error:
            if not self._can_move(server) or not await self._move(str(error)):
                raise

    def _adapt(self, server: Server) -> None:
        self.session.use_features(server.features, progress=server.progress)

    async def _wait_until_draining(self, server: Server, channel: Channel) -> None:
        """Wait until the server stops and another one can take the call."""
        await channel.draining.wait()
        if not self._can_move(server):
            await wait_until_cancelled()

    def _can_move(self, server: Server) -> bool:
        """Whether another server can probably take the call."""
        # NVIDIA's protocol sends no tokens, so another server could not remember the call.
        if not self._move_calls or (server.address.moshi and self.session.ready):
            return False
        voice, features = self.session.persona.voice, self._required_features
        other = least_loaded(self._servers, voice, [server], features)
        return other is not None and not other.full

    @property
    def _required_features(self) -> frozenset[Feature]:
        """What a server must be able to do to take the session as it is now."""
        if self.session.record.empty:
            return NO_FEATURES
        if self._channel is None:
            return frozenset({"history"})
        return self.session.features | {"history"}

    async def _move(self, reason: str) -> bool:
        """Continue the call at another server; return whether one has taken it."""
        assert self._server is not None and self._channel is not None
        old, old_channel = self._server, self._channel
        log = logger.bind(session=self.session.id)
        log.warning("the call moves to another server: {}", reason)
        try:
            server, channel = await self._open(leave_out=old)
        except PersonaPlexError as refusal:
            log.warning("no other server takes the call: {}", refusal)
            return False
        # From here on the new channel ends with this task.
        self._server, self._channel = server, channel
        unconfirmed = old_channel.unconfirmed()
        old.release(old_channel)
        self.session.restart(unconfirmed)
        self._adapt(server)
        log.info(
            "the call has moved from {} to {}, where its session is {}",
            *(old.address.url, server.address.url, channel.server_id or "unnamed"),
        )
        return True

    async def _open(self, leave_out: Server | None = None) -> tuple[Server, Channel]:
        """Open the session at the least loaded server that accepts it.

        Args:
            leave_out: The server that the call leaves; None for a session without a server.

        Raises:
            PersonaPlexError: No server accepts it.
        """
        voice, features = self.session.persona.voice, self._required_features
        refusals: dict[Server, PersonaPlexError] = {}
        while True:
            tried = {*refusals, leave_out} if leave_out else refusals.keys()
            if (server := least_loaded(self._servers, voice, tried, features)) is None:
                break
            try:
                channel = await server.open(self.session)
            except _NO_FAILOVER:
                self.refused = leave_out is None
                raise
            except PersonaPlexError as refusal:
                refusals[server] = refusal
            else:
                return server, channel
        self.refused = leave_out is None
        if not refusals:  # every suitable server has gone since open_session was called
            others = [server for server in self._servers if server is not leave_out]
            require_available(others, voice, features)
        raise combine_refusals(list(refusals.values()))

    def _finish(self, task: asyncio.Task[None]) -> None:
        try:
            session = self.session
            if session.closed and not task.cancelled():
                task.exception()  # Without this, asyncio logs an error that has been reported.
            session.end(session.error if session.closed else self._error_of(task))
        except BaseException as raised:  # also CancelledError: no callback may end the thread
            logger.bind(session=self.session.id).opt(exception=raised).error(
                "a callback at the session's end raised"
            )
        self._on_ended(self)

    def _error_of(self, task: asyncio.Task[None]) -> PersonaPlexError:
        """Why a session ended that the caller did not close."""
        if task.cancelled():
            return self._failure or EngineStopped("the engine was stopped")
        error = task.exception()
        if isinstance(error, PersonaPlexError):
            return error
        logger.bind(session=self.session.id).opt(exception=error).error(
            "the remote session failed by an unexpected error"
        )
        failure = SessionFailed(f"the session failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
