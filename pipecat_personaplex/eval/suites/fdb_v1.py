"""Full-Duplex-Bench v1: pauses, backchannels, turns and interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.eval.suites.suite_files import (
    CONVERSATION_PROMPT,
    TEACHER_PROMPT,
    Suite,
    events_of,
    find_root,
    first_timestamp,
    item_folders,
    read_json,
    require_folder,
    timestamps,
)

SOURCE = (
    "download the folder v1.0 from "
    "https://drive.google.com/drive/folders/1DtoxMVO9_Y_nDs2peZtx3pw-U2qYgpd3 (CC BY-NC 4.0, not "
    "for commercial use); this package ships no data"
)
GROUPS = {
    "synthetic_pause_handling": "pause_synthetic",
    "candor_pause_handling": "pause_candor",
    "icc_backchannel": "backchannel",
    "candor_turn_taking": "turn",
    "synthetic_user_interruption": "interruption",
}
"""Group of scores by the folder of a task."""
HUMAN_FILE = "icc_gt_distribution.json"
"""People's backchannels by item, in bins of 200 ms; beside the items or one folder above."""


def load(data: Path | None) -> Iterator[Item]:
    """Yield the items of all tasks that the folder has."""
    data = require_folder(data, "fdb-v1", SOURCE)
    root = find_root(data, list(GROUPS), "fdb-v1", SOURCE)
    human = _human_backchannels(root)
    for task, group in GROUPS.items():
        for folder in item_folders(root / task):
            pcm = read_audio(folder / "input.wav")
            reference = {}
            if group == "backchannel" and folder.name in human:
                reference = {"backchannels": human[folder.name]}
            with events_of(folder):
                events = _events(group, folder, len(pcm) / SAMPLE_RATE)
            yield Item(
                id=f"{task}/{folder.name}",
                group=group,
                pcm=pcm,
                events=events,
                prompt=TEACHER_PROMPT if group == "interruption" else CONVERSATION_PROMPT,
                reference=reference,
                source=str(folder.resolve()),
            )


def _events(group: str, folder: Path, seconds: float) -> tuple[Event, ...]:
    if group in ("pause_synthetic", "pause_candor"):
        return tuple(Event("pause", start, end) for start, end in timestamps(folder / "pause.json"))
    if group == "turn":
        # The first number is the end of the caller's turn.
        end = first_timestamp(folder / "turn_taking.json")[0]
        return (Event("turn_end", end, end),)
    if group == "interruption":
        start, end = first_timestamp(folder / "interrupt.json")
        [annotation, *_] = read_json(folder / "interrupt.json")
        return (Event("interruption", start, end, str(annotation.get("interrupt", ""))),)
    return (Event("narration", 0.0, seconds),)


def _human_backchannels(root: Path) -> dict[str, list[float]]:
    for path in (
        root / HUMAN_FILE,
        root / "icc_backchannel" / HUMAN_FILE,
        root.parent / HUMAN_FILE,
    ):
        if path.is_file():
            content: Any = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path} must map the ids of items to lists of numbers")
            return {str(name): [float(each) for each in bins] for name, bins in content.items()}
    return {}


SUITE = Suite("fdb-v1", "Full-Duplex-Bench v1", SOURCE, load)
