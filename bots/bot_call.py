"""One call of a bot: its pipeline, from the connected caller to the end."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.frames.frames import CancelFrame, EndFrame, ErrorFrame, Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.stt_service import STTService
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.runner import WorkerRunner

from bots.caller_watch import CallerWatch
from bots.protection_options import connect_seconds, silent_seconds
from bots.session_log import LoggedEngine
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings

if TYPE_CHECKING:
    from loguru import Logger


class BotCall:
    """One call, as a bot's ``converse`` function gets it.

    Args:
        engine: The engine that all calls share.
        transport: The connection to the caller.
        settings: The agent's settings, from the options.
        args: All options, the runner's included.
        rate: Sample rate of the pipeline, in and out.
        idle_seconds: How long the pipeline may be idle before the call ends; None for ever.
        running: Workers of the calls in progress. The call adds its own while it runs; a
            ``RunningCalls`` refuses it once the bot stops.
        client: Name of the client in the log; empty if it is not known.

    Attributes:
        engine: The same engine; sessions that are opened through it are logged.
        connected: Set once the caller is there.
    """

    def __init__(
        self,
        engine: EngineLike,
        transport: BaseTransport,
        settings: PersonaPlexLLMSettings,
        args: argparse.Namespace,
        *,
        rate: int,
        idle_seconds: float | None,
        running: set[PipelineWorker],
        client: str = "",
    ):
        self.engine = LoggedEngine(engine, client)
        self.transport = transport
        self.settings = settings
        self.args = args
        self.connected = asyncio.Event()
        self._rate = rate
        self._idle_seconds = idle_seconds
        self._running = running
        self._client = client

    async def run(self, processors: Sequence[FrameProcessor]) -> None:
        """Run the call's pipeline until the caller hangs up or the agent cannot go on.

        Args:
            processors: The pipeline, from the transport's input on.

        Raises:
            EngineDraining: The bot is stopping.
        """
        watch = CallerWatch()
        worker = PipelineWorker(
            Pipeline([processors[0], watch, *processors[1:]]),
            params=PipelineParams(
                audio_in_sample_rate=self._rate,
                audio_out_sample_rate=self._rate,
                enable_metrics=True,
                enable_usage_metrics=True,
                send_initial_empty_metrics=False,
            ),
            enable_turn_tracking=False,  # only traces need it, and it costs time
            idle_timeout_secs=self._idle_seconds,
            processor_unusable_policy=ProcessorUnusablePolicy.CONTINUE,  # on_pipeline_error decides
        )
        end_reason = ""

        def log() -> Logger:
            return logger.bind(session=self.engine.session_id, client=self._client)

        @worker.event_handler("on_pipeline_finished")  # type: ignore[untyped-decorator]
        async def on_pipeline_finished(worker: object, frame: Frame) -> None:
            nonlocal end_reason
            end_reason = end_reason or getattr(frame, "reason", None) or "the pipeline ended"

        @worker.event_handler("on_pipeline_error")  # type: ignore[untyped-decorator]
        async def on_pipeline_error(worker: PipelineWorker, frame: ErrorFrame) -> None:
            nonlocal end_reason
            if end_reason or frame.processor is None or frame.processor.is_usable:
                return
            error = " ".join(frame.error.split())
            if isinstance(frame.processor, STTService):  # the model needs no transcript
                log().warning("the call goes on without its speech-to-text service: {}", error)
            else:
                end_reason = error
                await worker.queue_frame(EndFrame())

        ending = False

        @worker.pipeline.event_handler("on_before_process_frame")  # type: ignore[untyped-decorator]
        async def on_before_process_frame(pipeline: object, frame: Frame) -> None:
            nonlocal ending
            ending = ending or isinstance(frame, EndFrame)

        @self.transport.event_handler("on_client_connected")  # type: ignore[untyped-decorator]
        async def on_client_connected(transport: object, client: object) -> None:
            self.connected.set()
            watch.connected()

        @self.transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def on_client_disconnected(transport: object, client: object) -> None:
            nonlocal end_reason
            if self.args.transport == "daily" and _others_stay(self.transport, client):
                return
            end_reason = end_reason or "the caller hung up"
            await worker.cancel(reason=end_reason)
            if ending:
                # The worker's CancelFrame waits behind the EndFrame of the goodbye, which waits
                # until its audio is played: to a caller who has hung up, for ever.
                await worker.pipeline.queue_frame(CancelFrame(reason=end_reason))

        if self.args.transport == "daily":
            # Pipecat would run on without a room, and the session would hold its slot for ever.
            @self.transport.event_handler("on_error")  # type: ignore[untyped-decorator]
            async def on_error(transport: object, error: str) -> None:
                await worker.cancel(reason="the Daily room failed")

        workers = WorkerRunner(handle_sigint=False)
        await workers.add_workers(worker)
        self._running.add(worker)
        started = time.monotonic()
        watching = asyncio.create_task(
            watch.end_if_absent(
                connect_seconds(self.args),
                silent_seconds(self.args),
                lambda reason: worker.cancel(reason=reason),
            )
        )
        try:
            await workers.run()
        finally:
            watching.cancel()
            self._running.discard(worker)
            log().info(
                "call ended after {:.1f} s: {}",
                time.monotonic() - started,
                end_reason or "the pipeline did not start",
            )


def _others_stay(room: Any, left: Any) -> bool:
    """Whether anybody but the bot is in a Daily room when a participant has left."""
    return any(each not in ("local", left["id"]) for each in room.participants())
