"""Makes Pipecat's transports independent of the wall clock.

The audio track of its WebRTC transport decides by ``time.time()`` when the next packet is due. If
the wall clock is set back, the caller hears nothing for as long. Pipecat's output uses the same
clock to report that the agent speaks. Without these reports the idle timeout ends the call.
"""

from __future__ import annotations

import importlib
import time
from types import ModuleType
from typing import Any

from loguru import logger

# Every time.time() of these modules is compared only with another one of the same module.
_MODULES = (
    "pipecat.transports.smallwebrtc.transport",
    "pipecat.transports.smallwebrtc.connection",
    "pipecat.transports.base_output",
    "pipecat.processors.frameworks.rtvi.observer",
)


class _MonotonicTime:
    """The module ``time``, whose ``time()`` never goes back."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


_MONOTONIC = _MonotonicTime()


def use_monotonic_time() -> None:
    """Replace the wall clock in Pipecat's transports; call this before the first call.

    Pipecat has no option for this, so the name ``time`` in its modules is replaced. If they no
    longer have it, they stay as they are.
    """
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            logger.debug("{} is not installed: {}", name, error)
            continue
        if isinstance(getattr(module, "time", None), ModuleType):
            setattr(module, "time", _MONOTONIC)  # noqa: B010  mypy: another type
        elif getattr(module, "time", None) is not _MONOTONIC:
            logger.warning("a change of the wall clock may silence calls: {} has changed", name)
