"""A bot that says a long goodbye as soon as a call starts, and then ends the call."""

from __future__ import annotations

import sys

from pipecat.frames.frames import EndWorkerFrame
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameDirection
from pipecat.runner.types import RunnerArguments

from bots.host import BotCall, BotHost
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from tests.helpers.engines import FakeEngine

WORDS = 100  # 8 s: the engine speaks one word a frame


async def converse(call: BotCall) -> None:
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(call.engine, settings=call.settings, playout=playout)

    @agent.event_handler("on_session_started")
    async def on_session_started(service: PersonaPlexLLMService, persona: object) -> None:
        service.say("bye " * WORDS, interruptible=False)
        await service.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)

    branches = ParallelPipeline([IdentityFilter()], [agent])
    await call.run([call.transport.input(), branches, call.transport.output(), playout])


host = BotHost("Says goodbye.", converse, voice="NATF2", prompt="You say goodbye.")


async def bot(runner_args: RunnerArguments) -> None:
    await host.serve_call(runner_args)


if __name__ == "__main__":
    with FakeEngine() as engine:
        sys.exit(host.main(engine))
