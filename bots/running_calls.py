"""The calls in progress, and their end when the bot stops."""

from __future__ import annotations

import asyncio

from pipecat.pipeline.worker import PipelineWorker

from pipecat_personaplex.errors import EngineDraining


class RunningCalls(set[PipelineWorker]):
    """The workers of the calls in progress.

    Example::

        running = RunningCalls()
        running.add(worker)
        running.stop()  # in the event loop, when the bot stops
    """

    def __init__(self) -> None:
        super().__init__()
        self._stopping = False
        self._ending: set[asyncio.Task[None]] = set()

    def require_open(self) -> None:
        """Check that new calls are accepted.

        Raises:
            EngineDraining: The bot is stopping.
        """
        if self._stopping:
            raise EngineDraining("the bot is stopping")

    def add(self, worker: PipelineWorker) -> None:
        """Note that a call runs from now on.

        Raises:
            EngineDraining: The bot is stopping.
        """
        self.require_open()
        super().add(worker)

    def stop(self) -> None:
        """End all calls, and accept no more: a call that is being set up is not there to end."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        self._ending.update(
            loop.create_task(worker.cancel(reason="the bot is stopping")) for worker in self
        )
