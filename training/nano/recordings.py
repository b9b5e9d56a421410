"""Turns of Kokoro's callers on disk: they take hours to synthesise, and are used again and again.

Each file holds a few turns, each in a voice of its own. Processes share the work by file number,
and a run that was stopped continues where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.nano import wordings
from training.nano.kokoro import sample_kokoro_voice
from training.nano.progress import from_int16, load_state, save_state, to_int16
from training.nano.turns import Turn, sample_turn

_TURNS_EACH = 20


@dataclass(frozen=True)
class Recording:
    """A turn and its intent."""

    intent: str
    turn: Turn

    def row(self) -> dict[str, Any]:
        """A row of a training state, with 16-bit audio."""
        return {**vars(self.turn), "intent": self.intent, "pcm": to_int16(self.turn.pcm)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Recording:
        """What ``row`` was made of."""
        fields = {name: value for name, value in row.items() if name not in ("intent", "pcm")}
        return cls(row["intent"], Turn(pcm=from_int16(row["pcm"]), **fields))


def _file(folder: Path, number: int) -> Path:
    return folder / "kokoro" / f"{number:04}.pt"


def record(folder: Path, turns: int, part: int = 0, parts: int = 1) -> None:
    """Synthesise turns that do not exist yet.

    Args:
        folder: Folder of the training states.
        turns: Turns in all.
        part: Number of this process, from 0.
        parts: Processes that share the work.
    """
    known = list(wordings.INTENTS)
    for number in range(part, -(-turns // _TURNS_EACH), parts):
        if _file(folder, number).exists():
            continue
        random = np.random.default_rng([55, number])
        rows = []
        for _ in range(_TURNS_EACH):
            intent = known[int(random.integers(len(known)))]
            turn = sample_turn(intent, sample_kokoro_voice(random), random)
            rows.append(Recording(intent, turn).row())
        save_state(_file(folder, number), {"turns": rows})


def load_recordings(folder: Path) -> list[Recording]:
    """All turns recorded so far."""
    paths = sorted((folder / "kokoro").glob("*.pt"))
    return [Recording.of(row) for path in paths for row in load_state(path)["turns"]]
