"""Loaders: the layouts of the benchmarks, and what they say when something is missing."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval.items import EVENT_KINDS, Event
from pipecat_personaplex.eval.suites import caller_voices as voices_module
from pipecat_personaplex.eval.suites import nano_calls
from pipecat_personaplex.eval.suites.registry import SUITES, find_suite
from pipecat_personaplex.eval.voice_activity import caller_spans, energy_spans, silero_spans
from tests.eval import folders

_FORM = "a.json: events must be a list of objects with kind, start, end and optionally text$"


def test_fdb_v1(tmp_path: Path) -> None:
    items = {item.group: item for item in find_suite("fdb-v1").items(folders.fdb_v1(tmp_path))}
    assert items.keys() == {
        "pause_synthetic",
        "pause_candor",
        "turn",
        "backchannel",
        "interruption",
    }
    assert items["turn"].id == "candor_turn_taking/3"
    [turn] = items["turn"].events
    assert turn.kind == "turn_end" and turn.start == pytest.approx(
        0.3 + len(folders.CLIPS[0]) / 24e3
    )
    [pause] = items["pause_candor"].events
    assert pause.kind == "pause" and pause.end - pause.start == pytest.approx(0.6)
    [narration] = items["backchannel"].events
    seconds = len(items["backchannel"].pcm) / SAMPLE_RATE
    assert (narration.start, narration.end) == (0.0, seconds)
    assert len(items["backchannel"].reference["backchannels"]) == 15
    [interruption] = items["interruption"].events
    assert interruption.text == "How many planets?"
    assert items["interruption"].prompt.startswith("You are a wise and friendly teacher")
    assert items["turn"].prompt == "You enjoy having a good conversation."
    # The folder itself, and the one above, are found too.
    assert len(list(find_suite("fdb-v1").items(tmp_path / "v1.0"))) == 5


def test_fdb_v15(tmp_path: Path) -> None:
    items = list(find_suite("fdb-v1.5").items(folders.fdb_v15(tmp_path)))
    kinds = [event.kind for item in items for event in item.events]
    assert kinds == ["interruption", "backchannel", "aside", "third_party"]
    assert items[0].events[0] == Event("interruption", 2.0, 2.5, "hold on")
    assert items[1].id == "user_interruption/0.clean" and items[1].events == ()


def test_humdial(tmp_path: Path) -> None:
    items = {item.group: item for item in find_suite("humdial").items(folders.humdial(tmp_path))}
    found = {name: [(e.kind, e.start, e.end) for e in item.events] for name, item in items.items()}
    assert found == {
        "en_ask": [("turn_end", 2.0, 2.0), ("interruption", 6.0, 7.0)],
        "en_talk_to_others": [
            ("turn_end", 2.0, 2.0),
            ("turn_end", 7.0, 7.0),
            ("aside", 8.0, 8.5),
        ],
        "en_backchannel": [("turn_end", 2.0, 2.0), ("backchannel", 6.0, 7.0)],
        "en_pause": [("pause", 1.2, 1.7), ("turn_end", 2.0, 2.0)],
    }


def test_service_folder(tmp_path: Path) -> None:
    metadata = {
        "prompt_text": "You work for a bakery.",
        "question_text": "What is bread?",
        "question_index": 4,
        "speaker_index": 1,
    }
    folders.write(tmp_path / "12", folders.recording(folders.CLIPS[0]), metadata=metadata)
    [item] = find_suite("service").items(tmp_path)
    assert (item.id, item.group, item.prompt) == ("12", "q4", "You work for a bakery.")
    [event] = item.events
    spoken = 0.3 + len(folders.CLIPS[0]) / SAMPLE_RATE
    assert event.text == "What is bread?" and event.end == pytest.approx(spoken, abs=0.25)


@pytest.mark.skipif(not voices_module.has_espeak(), reason="no espeak-ng")
def test_own_service_questions() -> None:
    items = list(find_suite("service").items(None, limit=1))
    assert [item.group for item in items] == [f"q{index}" for index in range(7)]
    assert all(item.wanted and item.events[0].text for item in items)
    assert all(0.5 < len(item.pcm) / SAMPLE_RATE - item.events[0].end < 9.5 for item in items)


def test_folder_of_recordings(tmp_path: Path) -> None:
    events = [
        {"kind": "turn_end", "start": 2.5, "end": 2.5},
        {"kind": "pause", "start": 1.0, "end": 1.4},
    ]
    folders.write(
        tmp_path, folders.silence(4), "a.b.wav", **{"a.b": {"events": events, "prompt": "Hi."}}
    )
    [item] = find_suite("folder").items(tmp_path)
    assert (item.id, item.group, item.prompt) == ("a_b", "calls", "Hi.")
    assert [event.kind for event in item.events] == ["pause", "turn_end"]
    rounded = {"events": [{"kind": "silence", "start": 0.0, "end": 4.1, "text": ""}]}
    folders.write(tmp_path, folders.silence(4), "a.b.wav", **{"a.b": rounded})
    [item] = find_suite("folder").items(tmp_path)
    assert item.events == (Event("silence", 0.0, 4.1),)
    folders.write(
        tmp_path, folders.silence(1), "Größe 日本 #1.WAV", **{"Größe 日本 #1": {"events": []}}
    )
    assert [each.id for each in find_suite("folder").items(tmp_path)] == ["Größe_日本__1", "a_b"]
    (tmp_path / "c.wav").write_bytes(b"RIFF, but no more")
    (tmp_path / "c.json").write_text('{"events": []}')
    with pytest.raises(UserError, match=r"audio file .*c\.wav cannot be read"):
        list(find_suite("folder").items(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object with events"),
        ({"prompt": "x"}, "must be an object with events"),
        ({"events": [], "voice": "x"}, "must be an object with events"),
        ({"events": [{"kind": "cough", "start": 1, "end": 1}]}, "'cough' is unknown"),
        ({"events": [{"kind": "pause", "start": 2, "end": 1}]}, "end after its start"),
        ({"events": [{"kind": "pause", "start": "a", "end": 1}]}, "must be numbers"),
        ({"events": [{"kind": "pause", "start": 9, "end": 9}]}, "the recording ends at 1.00"),
        ({"events": [{"kind": "pause", "start": 0, "end": 1.2}]}, "from 0 to 1.2 s, and the"),
        ({"events": [{"kind": "pause"}]}, _FORM),
        ({"events": [{"kind": "pause", "start": 0, "end": 1, "note": "x"}]}, _FORM),
        ({"events": {"kind": "pause", "start": 0, "end": 1}}, _FORM),
        ({"events": ["pause"]}, _FORM),
        ({"events": 5}, _FORM),
        ({"events": {}}, _FORM),
        ({"events": [], "wanted": "nine dollars"}, "wanted must be a list of texts"),
        ({"events": [], "wanted": [9]}, "wanted must be a list of texts"),
        ({"events": [], "group": "support/v1.2"}, "group must be a name without /, not 'support/"),
        ({"events": [], "group": "/"}, "group must be a name without /"),
    ],
)
def test_wrong_events_are_named(tmp_path: Path, content: object, message: str) -> None:
    folders.write(tmp_path, folders.silence(1), "a.wav", a=content)
    with pytest.raises(UserError, match=message) as caught:
        list(find_suite("folder").items(tmp_path))
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("fdb-v1", ("https://drive.google.com", "CC BY-NC 4.0")),
        ("fdb-v1.5", ("https://drive.google.com", "CC BY-NC 4.0")),
        ("humdial", ("https://huggingface.co/datasets/ASLP-lab/HumDial-FDBench", "Apache-2.0")),
    ],
)
def test_missing_data_is_refused_with_address_and_licence(
    name: str, needed: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "unrelated").mkdir()
    for data in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as caught:
            list(find_suite(name).items(data))
        assert all(part in str(caught.value) for part in needed)
        assert "\n" not in str(caught.value)


def test_broken_annotations_are_named(tmp_path: Path) -> None:
    root = folders.fdb_v1(tmp_path)
    path = root / "v1.0" / "candor_turn_taking" / "3" / "turn_taking.json"
    for content, message in (("{", "not valid JSON"), ("[]", "must have the form"), ("7", "form")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            list(find_suite("fdb-v1").items(root))
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        list(find_suite("fdb-v1").items(root))


def test_unknown_suite() -> None:
    with pytest.raises(ConfigError, match="'fdb' is unknown; it must be one of fdb-v1, "):
        find_suite("fdb")


class TestNanoCalls:
    def test_every_kind_of_event_without_espeak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nano_calls, "has_espeak", lambda: False)
        voices = nano_calls.caller_voices()
        assert voices.name == "the recordings bundled with nano"
        items = list(nano_calls.generate(voices, 2))
        assert Counter(item.group for item in items) == dict.fromkeys(EVENT_KINDS, 2)
        for item in items:
            assert item.group in {event.kind for event in item.events}
            assert all(event.end <= len(item.pcm) / SAMPLE_RATE for event in item.events)
            assert np.abs(item.pcm).max() <= 1

    def test_an_installed_package_has_no_recordings(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """``pyproject.toml`` leaves them out of the wheel."""
        monkeypatch.setattr(voices_module, "_SAMPLES", tmp_path)
        monkeypatch.setattr(nano_calls, "has_espeak", lambda: True)
        assert nano_calls.caller_voices(bundled=True).name == "espeak-ng"
        monkeypatch.setattr(nano_calls, "has_espeak", lambda: False)
        for bundled in (False, True):
            with pytest.raises(UserError, match=r"callers need espeak-ng, or .* only a checkout"):
                nano_calls.caller_voices(bundled)

    @pytest.mark.skipif(not voices_module.has_espeak(), reason="no espeak-ng")
    def test_the_same_calls_every_time(self) -> None:
        voices = nano_calls.caller_voices()
        assert voices.name == "espeak-ng"
        first = [item.pcm for item in nano_calls.generate(voices, 1)]
        voices_module._speak.cache_clear()
        again = [item.pcm for item in nano_calls.generate(nano_calls.caller_voices(), 1)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_events_are_where_the_sound_is(self) -> None:
        voices = nano_calls.caller_voices(bundled=True)
        [item] = [item for item in nano_calls.generate(voices, 1) if item.group == "pause"]
        pause, turn = item.events
        spans = caller_spans(item.pcm)
        assert spans[-1].end == pytest.approx(turn.end, abs=0.25)
        assert any(
            abs(a.end - pause.start) < 0.2 and abs(b.start - pause.end) < 0.2
            for a, b in itertools.pairwise(spans)
        )

    def test_two_hundred_items_by_default(self) -> None:
        assert nano_calls.ITEMS_PER_KIND * len(EVENT_KINDS) >= 200

    def test_takes_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="leave out --data"):
            list(SUITES["nano"].items(tmp_path))


def test_detectors_agree_on_speech() -> None:
    pcm = folders.recording(folders.CLIPS[1], lead=1.0, tail=1.5)
    [energy] = [(spans[0].start, spans[-1].end) for spans in [energy_spans(pcm)]]
    silero = silero_spans(pcm)
    assert silero[0].start == pytest.approx(energy[0], abs=0.3)
    assert silero[-1].end == pytest.approx(energy[1], abs=0.3)
    # 24 kHz taken for 16 kHz: every time is 1.5 times as large.
    quirk = energy_spans(pcm, 16_000)
    assert quirk[0].start == pytest.approx(energy[0] * 1.5, abs=0.05)
    for detector in (energy_spans, silero_spans, caller_spans):
        assert detector(folders.silence(1)) == []
        assert detector(folders.silence(0)) == []


def test_events_survive_json() -> None:
    event = Event("aside", 1.0, 2.5, "so")
    assert (
        Event(**json.loads(json.dumps({"kind": "aside", "start": 1, "end": 2.5, "text": "so"})))
        == event
    )
