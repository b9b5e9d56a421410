"""HumDial-FDBench: ten kinds of events, recorded by people, in English and Chinese."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Event, EventKind, Item
from pipecat_personaplex.eval.suites.suite_files import (
    CONVERSATION_PROMPT,
    Suite,
    events_of,
    find_root,
    read_json,
    require_folder,
)

SOURCE = (
    "download Humdial-Track2-Test.zip from "
    "https://huggingface.co/datasets/ASLP-lab/HumDial-FDBench (Apache-2.0) and unpack it; this "
    "package ships no data"
)
LANGUAGES = {"en": "en_test_nondev", "zh": "cn_test_nondev"}
EVENTS: dict[str, tuple[EventKind, int]] = {
    "ask": ("interruption", 1),
    "deny": ("interruption", 1),
    "repeat": ("interruption", 1),
    "shift": ("interruption", 1),
    "wait": ("aside", 1),
    "backchannel": ("backchannel", 1),
    "talk_to_others": ("aside", 2),
    "others_talk_to_user_after": ("third_party", 1),
    "others_talk_to_user_before": ("third_party", 0),
    "pause": ("pause", 0),
}
"""Event of a category, and the segment of speech that it is. Every other segment is a turn.

After "wait" ("hold on"), the agent should be silent, as after a remark to another person.
"""


def load(data: Path | None) -> Iterator[Item]:
    """Yield the recordings of all languages and categories that the folder has."""
    data = require_folder(data, "humdial", SOURCE)
    root = find_root(data, list(LANGUAGES.values()), "humdial", SOURCE)
    for language, folder in LANGUAGES.items():
        for category in EVENTS:
            for path in sorted((root / folder / category).glob("*.wav")):
                annotation = path.with_suffix(".json")
                if path.stem.startswith("clean_") or not annotation.is_file():
                    continue
                with events_of(annotation):
                    events = _events(category, path, _segments(annotation))
                yield Item(
                    id=f"{language}/{category}/{path.stem}",
                    group=f"{language}_{category}",
                    pcm=read_audio(path),
                    events=events,
                    prompt=CONVERSATION_PROMPT,
                    source=str(path.parent.resolve()),
                )


def _segments(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    try:
        segments = [
            {"start": float(each["xmin"]), "end": float(each["xmax"]), "text": str(each["text"])}
            for each in content["speech_segments"]
        ]
    except (TypeError, KeyError, ValueError):
        raise UserError(
            f'{path} must contain "speech_segments" with "xmin", "xmax" and "text"'
        ) from None
    return sorted(segments, key=lambda each: each["start"])


def _events(
    category: str, recording: Path, segments: Sequence[dict[str, Any]]
) -> tuple[Event, ...]:
    kind, special = EVENTS[category]
    events: list[Event] = []
    for index, each in enumerate(segments):
        if kind == "pause" and index == special:
            events += _pause(recording, each)
        elif index == special or (kind == "third_party" and index >= special > 0):
            events.append(Event(kind, each["start"], each["end"], each["text"]))
            continue
        events.append(Event("turn_end", each["end"], each["end"], each["text"]))
    return tuple(events)


def _pause(recording: Path, segment: dict[str, Any]) -> list[Event]:
    """The longest gap between the words of the segment; none without word times."""
    path = recording.with_name(f"{recording.stem}_timestamp.json")
    if not path.is_file():
        return []
    try:
        words = sorted(
            (float(start), float(end))
            for start, end in (each["timestamp"] for each in read_json(path)["chunks"])
            if segment["start"] <= start and end <= segment["end"]
        )
    except (TypeError, KeyError, ValueError):
        raise UserError(f'{path} must contain "chunks" with "timestamp": [start, end]') from None
    gaps = [(later[0] - earlier[1], earlier[1], later[0]) for earlier, later in pairwise(words)]
    if not gaps or max(gaps)[0] <= 0:
        return []
    _, start, end = max(gaps)
    return [Event("pause", start, end)]


SUITE = Suite("humdial", "HumDial-FDBench", SOURCE, load)
