"""The assistant with an engine that repeats what it hears, to measure everything but the model."""

from __future__ import annotations

import sys

from bots.assistant import bot, host
from tests.helpers.engines import FakeEngine

# Where Pipecat's runner looks for it.
__all__ = ["bot"]

if __name__ == "__main__":
    with FakeEngine() as engine:
        sys.exit(host.main(engine))
