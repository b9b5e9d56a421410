"""Published results of PersonaPlex, to stand beside ours. Every column says who measured it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Source = Literal["card", "paper", "kyutai"]
SOURCES: Mapping[Source, str] = {
    "card": "model card, released checkpoint",
    "paper": "paper (Table 2), the authors' own model",
    "kyutai": "Kyutai's reproduction (arXiv 2606.11167), released checkpoint",
}
NOTES: Mapping[Source, str] = {
    "card": "The voice of the published run is unknown.",
    "paper": "The voice of the published run is unknown.",
    "kyutai": "Voice: a female recording of 3 s. Backchannels with the detector's sample rate "
    "corrected, so they compare with the fixed rules.",
}
# Names of scores are those of the suite fdb-v1. Values of the compat rules.
_COMPAT: Mapping[str, tuple[float, float, float | None]] = {
    "pause_synthetic/pause.tor": (0.358, 0.584, 0.482),
    "pause_candor/pause.tor": (0.431, 0.662, 0.444),
    "backchannel/narration.tor": (0.273, 0.327, None),
    "backchannel/narration.frequency": (0.042, 0.025, None),
    "backchannel/narration.jsd": (0.662, 0.649, None),
    "turn/turn_end.tor": (0.908, 0.992, 0.958),
    "turn/turn_end.latency": (0.170, 0.070, 0.219),
    "interruption/interruption.tor": (0.950, 1.000, 0.940),
    "interruption/interruption.judge": (4.290, 4.210, 4.500),
    "interruption/interruption.latency": (0.240, 0.400, 0.271),
}
# Kyutai's backchannels, measured with the corrected detector.
_FIXED: Mapping[str, float] = {
    "backchannel/narration.tor": 0.182,
    "backchannel/narration.frequency": 0.046,
    "backchannel/narration.jsd": 0.841,
}


def published(suite: str, source: Source, rules: str) -> dict[str, float]:
    """Published values by name of a score; empty for a suite without any.

    Args:
        suite: Name of the suite.
        source: Who measured.
        rules: ``compat`` or ``fixed``: the rules that the values follow.
    """
    if suite != "fdb-v1":
        return {}
    if rules == "fixed":
        return dict(_FIXED) if source == "kyutai" else {}
    column = list(SOURCES).index(source)
    values = {key: row[column] for key, row in _COMPAT.items()}
    return {key: value for key, value in values.items() if value is not None}
