"""The options of ``personaplex bench``, checked before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.constants import MAX_PROMPT_FRAMES
from pipecat_personaplex.errors import ConfigError

MEASUREMENTS = ("prompts", "steps", "parts", "bandwidth")
_MAX_MINUTES = 24 * 60
DEFAULT_MAX_SECONDS = 60.0

Echo = Callable[[str], None]
"""Prints one line of results for a reader."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        engine: Device, precisions, context and threads.
        sessions: Batch sizes, all different.
        frames: Timed steps for each batch size.
        prompt_frames: Length of the prompt; without ``fill``, timed sessions start after it.
        fill: Frames of the window that are filled when timing starts, or ``"full"``.
        minutes: How long to also step in real time, for each batch size; 0 skips that.
        measure: Some of ``MEASUREMENTS``.
        max_seconds: Most seconds for each slow comparison: the prompt that is stepped frame by
            frame, and each program that ``peer`` times. They are timed over fewer frames if needed.
        peer: Also time ``moshi`` from PyPI on the same architecture.
        histogram: A PNG file for a histogram of the step times, if any.

    Raises:
        ConfigError: A value is out of its range, or two do not fit together.

    Example::

        options = BenchOptions("random-1b", EngineConfig(device="cpu"), sessions=(1, 8))
        result = pipecat_personaplex.bench.run.run(options, print)
    """

    model: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    sessions: tuple[int, ...] = (1, 2, 4, 8)
    frames: int = 200
    prompt_frames: int = 300
    fill: int | Literal["full"] | None = None
    minutes: float = 0.0
    measure: tuple[str, ...] = MEASUREMENTS
    max_seconds: float = DEFAULT_MAX_SECONDS
    peer: bool = False
    histogram: Path | None = None

    def __post_init__(self) -> None:
        if not self.sessions or min(self.sessions) < 1:
            raise ConfigError(f"sessions must be numbers of at least 1, not {self.sessions}")
        if len(set(self.sessions)) < len(self.sessions):
            raise ConfigError(f"sessions must differ from one another: {self.sessions}")
        if self.frames < 1:
            raise ConfigError(f"frames must be at least 1, not {self.frames}")
        if not 2 <= self.prompt_frames <= MAX_PROMPT_FRAMES:
            raise ConfigError(
                f"prompt frames must be from 2 to {MAX_PROMPT_FRAMES}, not {self.prompt_frames}"
            )
        if isinstance(self.fill, int) and self.fill < 1:
            raise ConfigError(f"fill must be full or at least 1 frame, not {self.fill}")
        if not 0 <= self.minutes <= _MAX_MINUTES:  # also refuses NaN
            raise ConfigError(f"minutes must be from 0 to {_MAX_MINUTES}, not {self.minutes}")
        if not 1 <= self.max_seconds <= 60 * _MAX_MINUTES:
            raise ConfigError(
                f"max seconds must be from 1 to {60 * _MAX_MINUTES}, not {self.max_seconds}"
            )
        unknown = [name for name in self.measure if name not in MEASUREMENTS]
        if unknown or not self.measure:
            raise ConfigError(
                f"measure must be some of {', '.join(MEASUREMENTS)}, not "
                f"{', '.join(unknown) or 'nothing'}"
            )
        if "steps" not in self.measure and (self.minutes or self.histogram is not None):
            raise ConfigError("minutes and a histogram need steps; add steps to measure")
        if self.histogram is not None and self.histogram.suffix.lower() != ".png":
            raise ConfigError(
                f"the histogram is a PNG file; its name must end in .png: {self.histogram}"
            )


@dataclass(frozen=True)
class Fill:
    """How far into their calls the timed sessions are when timing starts.

    Attributes:
        positions: Frames that the temporal transformer has seen, including the prompt; may
            exceed the window.
        codec_frames: Frames that the codec has seen, which are those after the prompt.
    """

    positions: int
    codec_frames: int

    @classmethod
    def of(cls, options: BenchOptions, window: int, codec_window: int) -> Fill:
        """Return the fill that the options request for a model with these windows.

        Args:
            options: What to measure.
            window: Frames that the temporal transformer attends to.
            codec_window: Latents (40 ms each) that the codec attends to.

        Raises:
            ConfigError: ``options.fill`` exceeds the window.
        """
        full_codec = math.ceil(codec_window / 2)
        if options.fill is None:
            return cls(options.prompt_frames, 0)
        if options.fill == "full":
            # Beyond the window, so that every ring has wrapped.
            return cls(2 * window + full_codec, full_codec)
        if options.fill > window:
            raise ConfigError(
                f"--fill {options.fill}: the window holds {window} frames; give at most that, or "
                "full"
            )
        return cls(options.fill, min(options.fill, full_codec))


def require_tools(options: BenchOptions) -> None:
    """Check, before anything is measured, that the packages the options need are installed.

    Raises:
        ConfigError: A package is missing.
    """
    if options.histogram is not None and find_spec("matplotlib") is None:
        raise ConfigError("--histogram needs matplotlib: pip install 'pipecat-personaplex[bench]'")
    if options.peer and any(find_spec(name) is None for name in ("moshi", "einops")):
        raise ConfigError("--peer needs PyPI moshi: pip install --no-deps moshi==0.2.13 einops")
