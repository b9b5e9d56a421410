"""A remote session from its opening to its end."""

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
from pipecat_personaplex.remote.server_pool import least_loaded, most_telling, require_room
from pipecat_personaplex.remote.session import RemoteSession

# What is wrong with the session itself, wherever it is asked for.
_FINAL = (PromptTooLong, ConfigError, BadMessage)


class SessionTask:
    """Finds a session a server, keeps it going, and reports its end.

    Everything here runs on the remote engine's thread.

    Args:
        session: Its caller's side.
        servers: Where it may go.
        ended: Called once the end has been reported.
    """

    def __init__(
        self,
        session: RemoteSession,
        servers: Sequence[Server],
        ended: Callable[[SessionTask], object],
    ):
        self.session = session
        self.refused = False
        self._servers = servers
        self._ended = ended
        self._line: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Go."""
        self._task = asyncio.create_task(self._converse())
        # Not at the end of the coroutine: one that is cancelled early never begins.
        self._task.add_done_callback(self._over)

    def wake(self) -> None:
        """The session has something to send, or has been closed."""
        if self.session.closed:
            self.cut()
        elif self._line is not None:
            self._line.wake()

    def cut(self) -> None:
        """End the session."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait for the end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _converse(self) -> None:
        server, self._line = await self._find()
        try:
            await self._line.run()
        finally:
            server.part(self._line)

    async def _find(self) -> tuple[Server, Channel]:
        """A slot at the least loaded server that gives one.

        Raises:
            PersonaPlexError: None does, and why.
        """
        voice = self.session.persona.voice
        tried: dict[Server, PersonaPlexError] = {}
        while (server := least_loaded(self._servers, voice, list(tried))) is not None:
            try:
                line = await server.open(self.session)
            except _FINAL:
                self.refused = True
                raise
            except PersonaPlexError as refusal:
                tried[server] = refusal
            else:
                self.session.mute = server.mute
                return server, line
        self.refused = True
        if not tried:  # all have gone since the session was asked for
            require_room(self._servers, voice)
        raise most_telling(list(tried.values()))

    def _over(self, task: asyncio.Task[None]) -> None:
        try:
            self.session.end(None if self.session.closed else _reason(task))
        except BaseException as raised:  # also CancelledError: no callback may end the thread
            logger.opt(exception=raised).error("a session's on_end callback raised")
        self._ended(self)


def _reason(task: asyncio.Task[None]) -> PersonaPlexError:
    """Why a session ended that nobody closed."""
    error = EngineStopped("the engine was stopped") if task.cancelled() else task.exception()
    if isinstance(error, PersonaPlexError):
        return error
    logger.opt(exception=error).error("a remote session failed")
    failure = SessionFailed(f"the session failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
