"""Callers' turns as clean audio on disk: the encoder trains on them, and ``clips`` encodes them.

They take longer to synthesise than to encode, and do not change with the codec. Each file has a few
callers; processes share the work by file number, and a run that was stopped continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.nano.people import by_intent, sample_caller
from training.nano.pool import CALLERS_EACH
from training.nano.progress import StateMissing, load_state, save_state
from training.nano.recordings import Recording, load_recordings


def turns_file(folder: Path, number: int) -> Path:
    """The file of callers ``number * CALLERS_EACH`` and following."""
    return folder / "turns" / f"{number:04}.pt"


def speak(
    folder: Path,
    callers: int,
    turns: int,
    *,
    part: int = 0,
    parts: int = 1,
    synthesisers: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[Path]:
    """Synthesise callers whose files do not exist yet; yields each file as it is written.

    Args:
        folder: Folder of the training states.
        callers: Callers in all.
        turns: Turns of each caller.
        part: Number of this process, from 0.
        parts: Processes that share the work.
        synthesisers: Whose voices the callers have; empty for all.
        seed: Seed of voices and wordings, with the caller's number.

    Raises:
        NoCallers: A synthesiser is unknown, or only Kokoro is wanted and has no recordings.
    """
    for number in range(part, -(-callers // CALLERS_EACH), parts):
        path = turns_file(folder, number)
        if path.exists():
            continue
        # Again and again: `record` may add turns meanwhile.
        recordings = by_intent(load_recordings(folder))
        made = []
        for index in range(number * CALLERS_EACH, (number + 1) * CALLERS_EACH):
            random = np.random.default_rng([seed, index])
            source, intents = sample_caller(recordings, random, synthesisers)
            known = [str(intent) for intent in random.permutation(intents)]
            wanted = [known[turn % len(known)] for turn in range(turns)]
            made.append([Recording(i, source(i, random)).row() for i in wanted])
        save_state(path, {"callers": made})
        yield path


def turns_files(folder: Path) -> list[Path]:
    """The files that ``speak`` has written.

    Raises:
        StateMissing: ``speak`` has not written any.
    """
    if not (found := sorted((folder / "turns").glob("*.pt"))):
        raise StateMissing(f"no turns of callers in {folder / 'turns'}: run `speak` first")
    return found


def load_turns(path: Path) -> list[list[dict[str, Any]]]:
    """The rows of each caller's turns in a file; ``Recording.of`` reads them."""
    callers: list[list[dict[str, Any]]] = load_state(path)["callers"]
    return callers
