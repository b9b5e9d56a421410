"""Finds out from transcripts whether a turn of the caller needs the backend."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from loguru import logger
from pipecat.frames.frames import InterimTranscriptionFrame, TranscriptionFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frame_processor import FrameProcessor

from pipecat_personaplex.service.delegation.hold import Hold, Router, word_router


class TurnRouter:
    """Calls the router of a ``Hold`` with what the caller says; does nothing for ``Hold.never``.

    ``Hold.when`` begins with a transcript, so its router sees interim ones as well.

    Args:
        front: The service.
        hold: When the agent keeps silent.
        tool_texts: Returns the names and descriptions of the tools, for the default router.
        on_accepted: Called when the router has accepted a transcript, and when a coroutine
            function has accepted a text of the current turn.
    """

    def __init__(
        self,
        front: FrameProcessor,
        hold: Hold,
        tool_texts: Callable[[], list[str]],
        on_accepted: Callable[[], None],
    ):
        self._front = front
        self._hold = hold
        self._tool_texts = tool_texts
        self._on_accepted = on_accepted
        self._turn = 0
        self._said: list[str] = []  # final transcripts of the current turn, in parts
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen to the transcripts of the pipeline."""
        if self._hold.mode == "when":
            self._front.pipeline_worker.add_observer(_Transcripts(self._on_transcript))

    async def close(self) -> None:
        """Stop the routers that are still at work."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            await self._front.cancel_task(task)

    def new_turn(self) -> None:
        """Ignore what routers find out about the turn before."""
        self._turn += 1

    def accepts(self, text: str) -> bool:
        """Ask the router about the words of the finished turn.

        Returns:
            Whether it accepts the text. False also if it is a coroutine function, whose answer
            comes later.
        """
        self._said.clear()
        return self._ask(text)

    def _on_transcript(self, text: str, final: bool) -> None:
        said_so_far = [*self._said, text]
        if final:
            self._said = said_so_far
        if self._ask(" ".join(said_so_far)):
            self._on_accepted()

    def _ask(self, text: str) -> bool:
        if self._hold.mode == "never":
            return False
        try:
            answer = self._router(text)
        except Exception as error:
            self._log(error)
            return False
        if not inspect.isawaitable(answer):
            return bool(answer)
        task = self._front.create_task(self._wait(answer, self._turn), f"{self._front}::router")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return False

    @property
    def _router(self) -> Router:
        return self._hold.router or word_router(self._tool_texts())

    async def _wait(self, answer: Awaitable[bool], turn: int) -> None:
        try:
            accepted = await answer
        except Exception as error:
            self._log(error)
        else:
            if accepted and turn == self._turn:
                self._on_accepted()

    def _log(self, error: Exception) -> None:
        logger.warning(f"{self._front}: the router of the hold raised {error!r}; not accepted")


class _Transcripts(BaseObserver):
    """Sees transcripts that the user aggregator does not pass on, interim ones included."""

    def __init__(self, on_transcript: Callable[[str, bool], None]):
        super().__init__()
        self._on_transcript = on_transcript

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if data.first_push and isinstance(frame, InterimTranscriptionFrame | TranscriptionFrame):
            self._on_transcript(frame.text.strip(), isinstance(frame, TranscriptionFrame))
