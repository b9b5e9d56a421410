"""Who calls in the training dialogues: voices of four synthesisers, each made many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from training.nano import wordings
from training.nano.formant_voices import sample_flite_voice, sample_pico_voice
from training.nano.recordings import Recording
from training.nano.timbre import sample_timbre
from training.nano.turns import SPEEDS, Person, Turn, change_speed, sample_turn
from training.nano.voices import sample_user_voice


class NoCallers(ValueError):
    """The synthesisers that were asked for have no callers."""


TurnSource = Callable[[str, np.random.Generator], Turn]
"""(intent, random) -> a turn of a caller."""

# Shares of callers by synthesiser; without recordings of Kokoro, the others divide its share.
_SHARES = {"espeak": 0.3, "kokoro": 0.42, "pico": 0.14, "flite": 0.14}
# Shares of turns with another pitch and formants (slow), and with another speed (fast).
_TIMBRE_SHARES = {"espeak": 0.3, "kokoro": 0.35, "pico": 0.5, "flite": 0.6}
_SPEED_SHARE = 0.6

_VOICES: dict[str, Callable[[np.random.Generator], Person]] = {
    "espeak": sample_user_voice,
    "pico": sample_pico_voice,
    "flite": sample_flite_voice,
}


def sample_caller(
    recordings: dict[str, list[Recording]],
    random: np.random.Generator,
    synthesisers: Sequence[str] = (),
) -> tuple[TurnSource, list[str]]:
    """Sample a caller.

    Args:
        recordings: Turns of Kokoro's speakers by intent; empty for none.
        random: Source of randomness.
        synthesisers: Whose voices to sample from; empty for all.

    Returns:
        The source of turns, and the intents that it knows.

    Raises:
        NoCallers: A synthesiser is unknown, or only Kokoro is wanted and has no recordings.
    """
    if unknown := set(synthesisers) - set(_SHARES):
        names = ", ".join(sorted(unknown))
        raise NoCallers(f"no synthesiser {names}; there are {', '.join(_SHARES)}")
    known = list(wordings.INTENTS)
    kinds = [kind for kind in synthesisers or _SHARES if recordings or kind != "kokoro"]
    if not kinds:
        raise NoCallers("there are no turns of Kokoro's callers yet; run `record` first")
    shares = np.array([_SHARES[kind] for kind in kinds])
    kind = str(random.choice(kinds, p=shares / shares.sum()))
    if kind == "kokoro":
        source: TurnSource = partial(_recorded, recordings)
        known = list(recordings)
    else:
        person = _VOICES[kind](random)
        source = partial(_synthesised, person)
    return partial(_changed, source, _TIMBRE_SHARES[kind]), known


def _synthesised(person: Person, intent: str, random: np.random.Generator) -> Turn:
    return sample_turn(intent, person, random)


def _recorded(
    recordings: dict[str, list[Recording]], intent: str, random: np.random.Generator
) -> Turn:
    known = recordings[intent]
    return known[int(random.integers(len(known)))].turn


def _changed(source: TurnSource, share: float, intent: str, random: np.random.Generator) -> Turn:
    turn = source(intent, random)
    if random.random() < share:
        return replace(turn, pcm=sample_timbre(turn.pcm, random))
    if random.random() < _SPEED_SHARE:
        return change_speed(turn, float(random.uniform(*SPEEDS)))
    return turn


def by_intent(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Recordings by their intent; those of intents that are no longer known are left out."""
    found: dict[str, list[Recording]] = {}
    for recording in recordings:
        if recording.intent in wordings.INTENTS:
            found.setdefault(recording.intent, []).append(recording)
    return found
