"""The agent's voices, and espeak-ng's of the callers."""

from __future__ import annotations

import numpy as np

from training.nano.espeak import Manner

AGENT_VOICES: dict[str, dict[str, float]] = {
    "NATF2": {"jf_alpha": 0.4, "jf_gongitsune": 0.35, "jm_kumo": 0.25},
    "NATM1": {"jm_kumo": 1.0},
}
"""Shares of Kokoro's style tables in each of the agent's voices, by the preset.

NATF2 is the bots' default. Whisper tiny.en understands the mixture better than any woman's table.
"""

CLEAR_VOICES: dict[str, Manner] = {
    "woman": Manner("en-us+linda", rate=168, pitch=45, range=40),
    "man": Manner("en-us+m3", rate=165, pitch=50, range=40),
}
"""espeak-ng's voices that the codec's first phases hear most, and that measure them."""

ACCENTS = (
    *("en-us", "en-us-nyc", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan"),
    *("en-gb-x-gbcwmd", "en-029"),
)
_VARIANTS = (
    *("", "m1", "m2", "m4", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "max", "Alex", "Alicia"),
    *("steph", "steph3", "Andy", "Annie", "Hugo", "edward", "edward2", "paul", "Andrea", "Diogo"),
    *("Gene", "Jacky", "Marco", "Mario", "Nguyen", "adam", "antonio", "aunty", "benjamin", "boris"),
    *("caleb", "david", "ed", "marcelo", "michel", "miguel", "norbert", "pablo", "pedro"),
    *("quincy", "rob", "robert", "sandro", "shelby", "travis", "victor", "zac", "grandpa"),
)
_HELD_OUT = (
    *("en-us+f4", "en-us+m5", "en-us+Lee", "en-us+belinda", "en+steph2", "en+Mike"),
    *("en-us+john", "en-gb-x-rp+anika"),
)


def sample_user_voice(random: np.random.Generator) -> Manner:
    """Sample a caller's voice for training: any accent with any variant that is not held out."""
    accent = ACCENTS[int(random.integers(len(ACCENTS)))]
    variant = _VARIANTS[int(random.integers(len(_VARIANTS)))]
    return Manner(
        f"{accent}+{variant}" if variant else accent,
        rate=int(random.integers(140, 201)),
        pitch=int(random.integers(28, 73)),
        range=int(random.integers(30, 71)),
    )


def held_out_voices() -> list[Manner]:
    """Callers' voices for evaluation; no training voice has one of their variants."""
    return [
        Manner(name, rate=150 + 9 * (index % 5), pitch=38 + 7 * (index % 4), range=45)
        for index, name in enumerate(_HELD_OUT)
    ]
