"""A bot in which every call raises an unexpected exception."""

from __future__ import annotations

import sys

from pipecat.runner.types import RunnerArguments

from bots.host import BotCall, BotHost
from tests.helpers.engines import FakeEngine


async def converse(call: BotCall) -> None:
    raise KeyError("STT_KEY")


host = BotHost("Fails.", converse, voice="NATF2", prompt="You fail.")


async def bot(runner_args: RunnerArguments) -> None:
    await host.serve_call(runner_args)


if __name__ == "__main__":
    with FakeEngine() as engine:
        sys.exit(host.main(engine))
