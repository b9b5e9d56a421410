"""The assistant with an engine that repeats its input: measures everything but the model."""

from __future__ import annotations

import sys

from bots.assistant import bot, host
from tests.helpers.engines import FakeEngine

# Pipecat's runner looks up ``bot`` in this module.
__all__ = ["bot"]

if __name__ == "__main__":
    with FakeEngine() as engine:
        sys.exit(host.main(engine))
