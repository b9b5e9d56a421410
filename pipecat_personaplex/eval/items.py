"""The vocabulary that all suites share: items, events and their kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.errors import ConfigError

EventKind = Literal[
    "turn_end",
    "pause",
    "narration",
    "interruption",
    "backchannel",
    "aside",
    "third_party",
    "silence",
]
"""What a caller does.

- ``turn_end``: the caller has finished and waits for an answer.
- ``pause``: a gap inside a sentence; the agent should wait.
- ``narration``: the caller talks for long; short backchannels of the agent are welcome.
- ``interruption``: the caller speaks over the agent and wants an answer.
- ``backchannel``: a short sound of the caller ("mhm"); the agent should continue.
- ``aside``: the caller speaks to another person; the agent should not answer.
- ``third_party``: another person speaks; the agent should not answer.
- ``silence``: the caller does not speak; the agent should not speak either.
"""
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a recording.

    Attributes:
        kind: What the caller does.
        start: Seconds from the start of the recording.
        end: Seconds; the same as ``start`` for a moment such as ``turn_end``.
        text: What the caller says, if known; judges see it.

    Raises:
        ConfigError: The kind is unknown or the times are not valid.
    """

    kind: EventKind
    start: float
    end: float
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in EVENT_KINDS:
            raise ConfigError(
                f"event kind {self.kind!r} is unknown; it must be one of {', '.join(EVENT_KINDS)}"
            )
        times = (self.start, self.end)
        if not all(isinstance(time, (int, float)) and math.isfinite(time) for time in times):
            raise ConfigError(f"the times of an event must be numbers, not {times}")
        if not 0 <= self.start <= self.end:
            raise ConfigError(
                f"an event must start at 0 or later and end after its start, not {times}"
            )


@dataclass(frozen=True)
class Item:
    """One call of a suite.

    Attributes:
        id: Unique in its suite; a relative path without dots.
        group: Name under which its scores are averaged, such as ``pause_candor``.
        pcm: The caller's audio, float32 [n] mono 24 kHz.
        events: What happens, in order of time.
        prompt: The agent's text prompt.
        wanted: Words of which a right answer contains at least one; empty if unknown.
        reference: Data of the item that its scores need, such as a distribution of people's
            backchannels (``backchannels``).
        source: Folder with the item's original files; empty if it was generated.
    """

    id: str
    group: str
    pcm: Pcm = field(repr=False)
    events: tuple[Event, ...]
    prompt: str = ""
    wanted: tuple[str, ...] = ()
    reference: dict[str, Any] = field(default_factory=dict)
    source: str = ""
