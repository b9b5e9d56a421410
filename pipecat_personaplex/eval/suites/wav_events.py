"""A folder of recordings, each with a JSON file of its events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.eval.suites.suite_files import Suite, events_of, read_json, require_folder

SOURCE = (
    'a folder with recordings (.wav, .flac) and, for each, a .json file with {"events": [{"kind": '
    '"turn_end", "start": 2.1, "end": 2.1}], "prompt": "..."}'
)
_KEYS = {"events", "prompt", "group", "wanted"}


def load(data: Path | None) -> Iterator[Item]:
    """Yield a recording for each JSON file of the folder."""
    data = require_folder(data, "folder", SOURCE)
    recordings = sorted(path for path in data.iterdir() if path.suffix.lower() in (".wav", ".flac"))
    if not recordings:
        raise UserError(f"suite folder: {data} has no recordings; it must be {SOURCE}")
    for path in recordings:
        yield _item(path)


def _item(path: Path) -> Item:
    annotation = path.with_suffix(".json")
    content = read_json(annotation)
    if not isinstance(content, dict) or not content.keys() <= _KEYS or "events" not in content:
        raise UserError(
            f"{annotation} must be an object with events, and optionally prompt, group and wanted"
        )
    try:
        with events_of(annotation):
            events = tuple(Event(**each) for each in content["events"])
    except TypeError as error:
        raise UserError(f"{annotation}: {error}") from None
    wanted = content.get("wanted", [])
    if not isinstance(wanted, list) or not all(isinstance(words, str) for words in wanted):
        raise UserError(f"{annotation}: wanted must be a list of texts, not {wanted!r}")
    group = str(content.get("group", "calls"))
    if "/" in group:
        raise UserError(f"{annotation}: group must be a name without /, not {group!r}")
    pcm = read_audio(path)
    seconds = len(pcm) / SAMPLE_RATE
    for event in events:
        if event.start > seconds:
            raise UserError(
                f"{annotation}: an event starts at {event.start} s and the recording ends at "
                f"{seconds:.2f} s"
            )
    return Item(
        id=re.sub(r"[^\w-]", "_", path.stem),
        group=group,
        pcm=pcm,
        events=tuple(sorted(events, key=lambda event: event.start)),
        prompt=str(content.get("prompt", "")),
        wanted=tuple(wanted),
        source=str(path.parent.resolve()),
    )


SUITE = Suite("folder", "recordings with events", SOURCE, load)
