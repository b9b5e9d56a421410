"""The options of a bench are checked when they are created."""

from __future__ import annotations

import pytest

from pipecat_personaplex.bench.measurements import BenchOptions
from pipecat_personaplex.errors import ConfigError


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing"):
        BenchOptions("x", measure=())
    with pytest.raises(ConfigError, match="prompt frames"):
        BenchOptions("x", prompt_frames=1)
    with pytest.raises(ConfigError, match="prompt frames must be from 2 to"):
        BenchOptions("x", prompt_frames=999_999)
