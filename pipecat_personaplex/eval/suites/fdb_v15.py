"""Full-Duplex-Bench v1.5: speech that overlaps the agent's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Event, EventKind, Item
from pipecat_personaplex.eval.suites.suite_files import (
    CONVERSATION_PROMPT,
    Suite,
    events_of,
    find_root,
    item_folders,
    read_json,
    require_folder,
)

SOURCE = (
    "download the folder v1.5 from "
    "https://drive.google.com/drive/folders/1DtoxMVO9_Y_nDs2peZtx3pw-U2qYgpd3 (CC BY-NC 4.0, not "
    "for commercial use); this package ships no data"
)
KINDS: dict[str, EventKind] = {
    "user_interruption": "interruption",
    "user_backchannel": "backchannel",
    "talking_to_other": "aside",
    "background_speech": "third_party",
}
"""Event of the overlapping speech, by the folder of a task."""


def load(data: Path | None) -> Iterator[Item]:
    """Yield the items of all tasks, each followed by its recording without the event, if any."""
    data = require_folder(data, "fdb-v1.5", SOURCE)
    root = find_root(data, list(KINDS), "fdb-v1.5", SOURCE)
    for task, kind in KINDS.items():
        for folder in item_folders(root / task):
            metadata = read_json(folder / "metadata.json")
            source = str(folder.resolve())
            yield Item(
                id=f"{task}/{folder.name}",
                group=task,
                pcm=read_audio(folder / "input.wav"),
                events=(_event(kind, folder, metadata),),
                prompt=CONVERSATION_PROMPT,
                source=source,
            )
            if (folder / "clean_input.wav").is_file():
                yield Item(
                    id=f"{task}/{folder.name}.clean",
                    group=f"{task}_clean",
                    pcm=read_audio(folder / "clean_input.wav"),
                    events=(),
                    prompt=CONVERSATION_PROMPT,
                    source=source,
                )


def _event(kind: EventKind, folder: Path, metadata: object) -> Event:
    try:
        start, end = metadata["timestamps"]  # type: ignore[index]
        texts = [
            str(value)
            for name, value in metadata.items()  # type: ignore[attr-defined]
            if name.endswith("_text") and name != "context_text"
        ]
        with events_of(folder):
            return Event(kind, float(start), float(end), texts[0] if texts else "")
    except (TypeError, KeyError, ValueError):
        path = folder / "metadata.json"
        raise UserError(f'{path} must contain "timestamps": [start, end] in seconds') from None


SUITE = Suite("fdb-v1.5", "Full-Duplex-Bench v1.5", SOURCE, load)
