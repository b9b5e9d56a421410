"""Pipecat frames with which other processors steer the agent without a reference to the service."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipecat.frames.frames import ControlFrame


@dataclass
class PersonaPlexHoldFrame(ControlFrame):
    """Keeps the agent silent, except for given texts; see ``PersonaPlexLLMService.hold``.

    Parameters:
        seconds: For how long, at most 30 s. A later hold replaces an earlier one.

    Example::

        await self.push_frame(PersonaPlexHoldFrame(seconds=1.0))
    """

    interruptible: bool = field(default=False, init=False)

    seconds: float


@dataclass
class PersonaPlexReleaseFrame(ControlFrame):
    """Ends a hold, so that the agent speaks by itself again; a hold of the delegation goes on.

    Example::

        await self.push_frame(PersonaPlexReleaseFrame())
    """

    interruptible: bool = field(default=False, init=False)
