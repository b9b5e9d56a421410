"""A bot whose calls take a second to begin, and another second to be set up."""

from __future__ import annotations

import asyncio
import sys

from pipecat.runner.types import RunnerArguments

from bots import assistant
from bots.host import BotCall, BotHost
from tests.helpers.engines import FakeEngine


async def converse(call: BotCall) -> None:
    await asyncio.sleep(1)
    await assistant.converse(call)


host = BotHost(
    "Is slow.",
    converse,
    voice="NATF2",
    prompt="You are slow.",
    extend=assistant._extend,
    check=assistant._check,
)


async def bot(runner_args: RunnerArguments) -> None:
    await asyncio.sleep(1)
    await host.serve_call(runner_args)


if __name__ == "__main__":
    with FakeEngine() as engine:
        sys.exit(host.main(engine))
