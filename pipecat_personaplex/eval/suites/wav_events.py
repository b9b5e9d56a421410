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
_EVENT_KEYS = {"kind", "start", "end"}
_ROUNDING = 0.1
"""Seconds by which an event may end after its recording: annotations are rounded."""


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
    listed = content["events"]
    if not isinstance(listed, list) or not all(map(_has_form_of_event, listed)):
        raise UserError(
            f"{annotation}: events must be a list of objects with kind, start, end and "
            "optionally text"
        )
    with events_of(annotation):
        events = tuple(Event(**each) for each in listed)
    wanted = content.get("wanted", [])
    if not isinstance(wanted, list) or not all(isinstance(words, str) for words in wanted):
        raise UserError(f"{annotation}: wanted must be a list of texts, not {wanted!r}")
    group = str(content.get("group", "calls"))
    if "/" in group:
        raise UserError(f"{annotation}: group must be a name without /, not {group!r}")
    pcm = read_audio(path)
    seconds = len(pcm) / SAMPLE_RATE
    for event in events:
        if event.start > seconds or event.end > seconds + _ROUNDING:
            raise UserError(
                f"{annotation}: the event {event.kind} lasts from {event.start} to {event.end} s, "
                f"and the recording ends at {seconds:.2f} s; correct the times"
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


def _has_form_of_event(value: object) -> bool:
    return isinstance(value, dict) and _EVENT_KEYS <= value.keys() <= _EVENT_KEYS | {"text"}


SUITE = Suite("folder", "recordings with events", SOURCE, load)
