"""Holds an EndFrame in front of the pipeline until the agent has spoken all its texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipecat.frames.frames import CancelFrame, ControlFrame, EndFrame, Frame
from pipecat.pipeline.worker import PipelineWorker

from pipecat_personaplex.service.call import Call

_STALL_SECONDS = 10.0
"""The extra wait for texts: the agent gives way to a caller who speaks, or the session is still
pending or has stalled."""

# For the texts in front of the EndFrame to arrive at the service. In a ServiceSwitcher, a service
# that is not active gets no frames.
_ARRIVAL_SECONDS = 1.0


@dataclass
class EndProbeFrame(ControlFrame):
    """Follows the frames in front of an EndFrame, so that they have arrived when it arrives.

    Parameters:
        arrived: Called by each service that the frame reaches.
    """

    interruptible: bool = field(default=False, init=False)

    arrived: Callable[[object], object]


class EndGate:
    """Delays the end of a call until all texts are spoken.

    The service must not wait while it processes an EndFrame: a ``ParallelPipeline``, and so a
    ``ServiceSwitcher``, holds back what its branches push until all of them have processed it, and
    the worker processes no CancelFrame in the meantime. So the gate waits in front of the whole
    pipeline, where the service's audio passes.

    Args:
        service: The service, as it names itself to ``EndProbeFrame.arrived``.
        call: The service's call.
        warn: Called with a message if texts remain.
    """

    def __init__(self, service: object, call: Call, warn: Callable[[str], object]):
        self._service = service
        self._call = call
        self._warn = warn
        self._worker: PipelineWorker | None = None
        self._waited = False

    def attach(self, worker: PipelineWorker | None) -> None:
        """Delay the EndFrames that this worker puts into its pipeline."""
        if worker is not None and worker is not self._worker:
            self._worker = worker
            worker.pipeline.add_event_handler("on_before_process_frame", self._before_frame)

    async def wait(self) -> None:
        """Wait until all texts are spoken, or the worker is cancelled; once for each call."""
        if self._waited:
            return
        self._waited = True
        if not await self._call.wait_for_speech(_STALL_SECONDS, give_up=self._cancelled):
            self._warn("the call ends before all forced speech was spoken: the model stalled")

    async def _before_frame(self, pipeline: Any, frame: Frame) -> None:
        if not isinstance(frame, EndFrame) or self._waited:
            return
        arrived = asyncio.Event()

        def on_arrival(service: object) -> None:
            if service is self._service:
                arrived.set()

        await pipeline.queue_frame(EndProbeFrame(arrived=on_arrival))
        waiting = asyncio.create_task(arrived.wait())
        await asyncio.wait({waiting}, timeout=_ARRIVAL_SECONDS)
        waiting.cancel()
        await self.wait()
        if self._cancelled():
            # The worker's own CancelFrame waits behind the EndFrame, which waits until the audio
            # is played: to a caller who has hung up, for ever.
            await pipeline.queue_frame(CancelFrame())

    def _cancelled(self) -> bool:
        # The worker queues a CancelFrame behind the EndFrame and has no other sign of it.
        return bool(getattr(self._worker, "_cancelled", False))
