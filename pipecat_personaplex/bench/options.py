"""What to measure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.errors import ConfigError

MEASUREMENTS = ("prompts", "steps", "parts", "bandwidth")
_MAX_MINUTES = 24 * 60


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        engine: How the model runs: device, precisions, threads.
        sessions: Batch sizes.
        frames: Steps timed for each.
        prompt_frames: Length of the prompt, and how old the timed calls are without ``fill``.
        fill: Frames of the window that are filled when timing starts, or ``"full"``.
        minutes: Also step in real time for so long, for each batch size; 0 does not.
        measure: Which of ``MEASUREMENTS``.
        peer: Also time PyPI ``moshi`` on the same architecture in the same run.
        histogram: A PNG file for the step times; None for none.
    """

    model: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    sessions: tuple[int, ...] = (1, 2, 4, 8)
    frames: int = 200
    prompt_frames: int = 300
    fill: int | Literal["full"] | None = None
    minutes: float = 0.0
    measure: tuple[str, ...] = MEASUREMENTS
    peer: bool = False
    histogram: Path | None = None

    def __post_init__(self) -> None:
        if not self.sessions or min(self.sessions) < 1:
            raise ConfigError(f"sessions must be numbers of at least 1, not {self.sessions}")
        if len(set(self.sessions)) < len(self.sessions):
            raise ConfigError(f"sessions must differ from one another: {self.sessions}")
        if self.frames < 1:
            raise ConfigError(f"frames must be at least 1, not {self.frames}")
        if self.prompt_frames < 2:
            raise ConfigError(f"prompt frames must be at least 2, not {self.prompt_frames}")
        if isinstance(self.fill, int) and self.fill < 1:
            raise ConfigError(f"fill must be full or at least 1 frame, not {self.fill}")
        if not 0 <= self.minutes <= _MAX_MINUTES:  # NaN too
            raise ConfigError(f"minutes must be from 0 to {_MAX_MINUTES}, not {self.minutes}")
        unknown = [name for name in self.measure if name not in MEASUREMENTS]
        if unknown or not self.measure:
            raise ConfigError(
                f"measure must be some of {', '.join(MEASUREMENTS)}, not "
                f"{', '.join(unknown) or 'nothing'}"
            )
        if "steps" not in self.measure and (self.minutes or self.histogram is not None):
            raise ConfigError("minutes and a histogram need steps among what is measured")
        if self.histogram is not None and self.histogram.suffix.lower() != ".png":
            raise ConfigError(f"the histogram is a PNG: name it .png, not {self.histogram}")


@dataclass(frozen=True)
class Fill:
    """How old the timed calls are when timing starts.

    Attributes:
        positions: Of the window that they have run through, prompt included; may exceed it.
        said: Frames of the call itself, which the codec has seen.
    """

    positions: int
    said: int

    @classmethod
    def of(cls, options: BenchOptions, window: int, codec_window: int) -> Fill:
        """What the options say for a model with these windows.

        Args:
            options: What to measure.
            window: Frames the temporal transformer attends to.
            codec_window: Latents (40 ms) that the codec attends to.

        Raises:
            ConfigError: The window has no room for so many frames.
        """
        codec_frames = math.ceil(codec_window / 2)
        if options.fill is None:
            return cls(options.prompt_frames, 0)
        if options.fill == "full":
            # Past the window, so that every ring has gone round.
            return cls(2 * window + codec_frames, codec_frames)
        if options.fill > window:
            raise ConfigError(
                f"--fill {options.fill}: the window holds {window} frames; give at most that, or "
                "full"
            )
        return cls(options.fill, min(options.fill, codec_frames))


def require_tools(options: BenchOptions) -> None:
    """Refuse, before anything is measured, what needs a package that is not here.

    Raises:
        ConfigError: Something does.
    """
    if options.histogram is not None and find_spec("matplotlib") is None:
        raise ConfigError("--histogram needs matplotlib: pip install -e '.[bench]' in the checkout")
    if options.peer and any(find_spec(name) is None for name in ("moshi", "einops")):
        raise ConfigError("--peer needs PyPI moshi: pip install --no-deps moshi==0.2.13 einops")
