"""Logs the sessions that one call opens, under their public ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from loguru import logger

from bots.busy import error_summary
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import (
    CallHistory,
    EngineLike,
    Feature,
    SessionFrame,
    SessionLike,
)

if TYPE_CHECKING:
    from loguru import Logger


class LoggedEngine:
    """The shared engine as one call sees it: each session that the call opens is logged.

    Log lines carry the session's public id and the client; they contain no prompt and no words.

    Args:
        engine: The engine that all calls share.
        client: Name of the client in the log.
    """

    def __init__(self, engine: EngineLike, client: str):
        self._engine = engine
        self._client = client
        self._session: SessionLike | None = None

    @property
    def session_id(self) -> str:
        """Public id of the latest session; empty before the first."""
        return "" if self._session is None else self._session.id

    @property
    def voices(self) -> list[str]:
        """Names of the voices that a persona may use."""
        return self._engine.voices

    @property
    def features(self) -> frozenset[Feature]:
        """What its sessions can do."""
        return self._engine.features

    @property
    def max_in_flight_frames(self) -> int:
        """Input frames that a healthy session may have in flight."""
        return self._engine.max_in_flight_frames

    @property
    def max_sessions(self) -> int:
        """Number of slots; 0 if it is not known."""
        return self._engine.max_sessions

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: CallHistory | None = None,
    ) -> SessionLike:
        """Open a session as the engine does; log when it is ready, and its error if it fails."""
        # The engine's thread may report before open_session returns the session and its id. The
        # log lines wait for it in this future.
        opened: Future[SessionLike] = Future()
        requested = time.monotonic()

        def log_ready() -> None:
            seconds = time.monotonic() - requested
            opened.add_done_callback(
                lambda session: self._log(session.result()).info(
                    "session started: ready after {:.2f} s", seconds
                )
            )
            if on_ready is not None:
                on_ready()

        def log_end(error: PersonaPlexError | None) -> None:
            if error is not None:
                failure = error_summary(error)
                opened.add_done_callback(
                    lambda session: self._log(session.result()).warning(
                        "session failed: {}", failure
                    )
                )
            if on_end is not None:
                on_end(error)

        session = self._engine.open_session(
            persona,
            sampling,
            on_frame=on_frame,
            on_ready=log_ready,
            on_end=log_end,
            history=history,
        )
        self._session = session
        opened.set_result(session)
        return session

    def _log(self, session: SessionLike) -> Logger:
        return logger.bind(session=session.id, client=self._client)
