"""The folder of a run: append-only, so that an interrupted run goes on where it stopped.

Files::

    run.json            model, checkpoint, voice, sampling, seeds, machine, commit, suite
    items.jsonl         one line for each finished call
    audio/SEED/ID.flac  what the agent said
    words/SEED/ID.json  its words, from the inner monologue
    asr/NAME/SEED/ID.json   words that a transcriber found
    judge/HASH.json     answers of judges, by content
    scores/NAME.json    scores

A call counts as finished when its line is in ``items.jsonl``; the line is written last.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipecat_personaplex.audio import Pcm, float_to_pcm16
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.eval.run_files import read_stored, replacing, require_keys, write_json
from pipecat_personaplex.eval.run_target import RUN_FILE, check_target
from pipecat_personaplex.words import Word

FORMAT = 1
_ID = re.compile(r"[\w.-]+(/[\w.-]+)*")
# Keys of run.json that may differ when a run goes on: they do not change a token.
_FREE_KEYS = frozenset({"machine", "commit", "version", "started", "sessions", "model"})
# Keys of run.json that tables and pages show.
_SHOWN_KEYS = (
    *("suite", "title", "items", "data_sha256", "seeds", "voice", "sampling", "machine"),
    *("model", "checkpoint_sha256", "dtype", "quantization", "commit", "version"),
)
_SCORE_KEYS = ("asr", "vad", "judge", "summary", "records")


@dataclass(frozen=True)
class Call:
    """A finished call of a run.

    Attributes:
        id: Id of the item.
        seed: Seed of the sampling.
        group: As in ``Item``.
        events: As in ``Item``.
        prompt: As in ``Item``.
        wanted: As in ``Item``.
        reference: As in ``Item``.
        source: As in ``Item``.
        seconds: Length of the recording.
        caller: Loudness of the caller, a number from 0 to 9 for each 80 ms, as text.
        tokens: Hash of the agent's tokens; the same for the same call in any batch.
        error: Why the call failed; empty if it did not. A failed call has no audio.
    """

    id: str
    seed: int
    group: str
    events: tuple[Event, ...]
    prompt: str
    wanted: tuple[str, ...]
    reference: Mapping[str, Any]
    source: str
    seconds: float
    caller: str
    tokens: str = ""
    error: str = ""

    @classmethod
    def of(cls, item: Item, seed: int, tokens: str = "", error: str = "") -> Call:
        """The call of an item."""
        return cls(
            item.id,
            seed,
            item.group,
            item.events,
            item.prompt,
            item.wanted,
            item.reference,
            item.source,
            round(len(item.pcm) / SAMPLE_RATE, 6),
            loudness(item.pcm),
            tokens,
            error,
        )


@dataclass
class RunFolder:
    """A run on disk.

    Attributes:
        path: The folder.
        settings: The content of ``run.json``.

    Example::

        run = RunFolder.open(Path("runs/monday"))
        for call in run.calls():
            print(call.id, [word.word for word in run.words(call)])
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> RunFolder:
        """Create a run, or continue one with the same settings.

        Raises:
            UserError: The folder holds a run with other settings, or something else.
        """
        new = {"format": FORMAT, **settings}
        if (path / RUN_FILE).is_file():
            run = cls.open(path)
            for key in sorted(new.keys() | run.settings.keys()):
                if key not in _FREE_KEYS and new.get(key) != run.settings.get(key):
                    raise UserError(
                        f"{path} holds a run whose {key} is {_short(run.settings.get(key))}, not "
                        f"{_short(new.get(key))}; give another --out, or the same options"
                    )
            run._repair()
            return run
        check_target(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / RUN_FILE, new)
        return cls(path, new)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open a run to read it.

        Raises:
            UserError: There is no run in the folder, it has another format, or its run.json is
                damaged.
        """
        file = path / RUN_FILE
        remedy = "restore it, or run again with another --out"
        try:
            settings = read_stored(file, dict, ["format"], remedy)
        except FileNotFoundError:
            raise UserError(
                f"{path} is not a run: it has no run.json; `personaplex eval run` makes one"
            ) from None
        if settings["format"] != FORMAT:
            raise UserError(
                f"{path} has format {settings['format']!r}, and this version reads {FORMAT}"
            )
        require_keys(file, settings, _SHOWN_KEYS, remedy)
        return cls(path, settings)

    def calls(self) -> list[Call]:
        """The finished calls, sorted by id and seed.

        An incomplete last line is ignored. A failed call may have a later line, which counts.

        Raises:
            UserError: A line is not valid.
        """
        path = self.path / "items.jsonl"
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        calls = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                calls.append(_call(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
                raise UserError(
                    f"{path}, line {number}, is no call of a run: {error}; delete "
                    "the line, and give the run's command again"
                ) from None
        newest = {(call.id, call.seed): call for call in calls}
        return [newest[key] for key in sorted(newest)]

    def add(self, call: Call, pcm: Pcm, words: Sequence[Word]) -> None:
        """Write a finished call: audio and words first, its line in ``items.jsonl`` last.

        Raises:
            UserError: The files cannot be written, for example because the disk is full.
        """
        try:
            if not call.error:
                with replacing(self.file("audio", call, ".flac")) as temporary:
                    temporary.write_bytes(_flac(pcm))
                write_json(self.file("words", call, ".json"), [asdict(word) for word in words])
            line = json.dumps(asdict(call), ensure_ascii=False) + "\n"
            with (self.path / "items.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{call.id} cannot be written to {self.path}: {error.strerror}; the same command "
                "goes on from the calls that are written"
            ) from None

    def audio(self, call: Call) -> Pcm:
        """The agent's audio, float32 [n] mono 24 kHz."""
        import soundfile

        path = self.file("audio", call, ".flac")
        try:
            pcm, _ = soundfile.read(path, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        samples: Pcm = pcm
        return samples

    def words(self, call: Call, folder: str = "words") -> list[Word] | None:
        """The agent's words; None if this folder has none of this call.

        Raises:
            UserError: The file is damaged.
        """
        path = self.file(folder, call, ".json")
        if not path.is_file():
            return None
        remedy = "delete it, and score again"
        if folder == "words":
            remedy = (
                f"delete the lines of {call.id} in items.jsonl, and give the run's command again"
            )
        words = read_stored(path, list, ["word", "start", "end"], remedy)
        return [Word(word["word"], word["start"], word["end"]) for word in words]

    def write_words(self, call: Call, folder: str, words: Sequence[Word]) -> None:
        """Write words that a transcriber has found."""
        write_json(self.file(folder, call, ".json"), [asdict(word) for word in words])

    def scores(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and contents of the scores so far.

        Raises:
            UserError: A file is damaged.
        """
        for path in self._score_files():
            yield path.stem, _read_scores(path)

    def scores_of(self, name: str) -> dict[str, Any] | None:
        """The scores of this name; None if there are none.

        Raises:
            UserError: The file is damaged.
        """
        path = self.path / "scores" / f"{name}.json"
        return _read_scores(path) if path.is_file() else None

    def newest_scores(self) -> dict[str, Any]:
        """The scores that were written last.

        Raises:
            UserError: There are none, or the file is damaged.
        """
        files = sorted(self._score_files(), key=lambda file: file.stat().st_mtime)
        if not files:
            raise UserError(f"{self.path} has no scores; `personaplex eval score` makes them")
        return _read_scores(files[-1])

    def _score_files(self) -> list[Path]:
        """Without temporary files, which a killed process leaves."""
        files = (self.path / "scores").glob("*.json")
        return sorted(file for file in files if not file.name.startswith("."))

    def file(self, folder: str, call: Call, suffix: str) -> Path:
        """The file of a call in one of the folders."""
        return self.path / folder / str(call.seed) / f"{checked_id(call.id)}{suffix}"

    def _repair(self) -> None:
        """Cut off a last line that a killed process has left incomplete."""
        path = self.path / "items.jsonl"
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)


def checked_id(name: str) -> str:
    """Return the id of an item; ids are parts of paths.

    Raises:
        UserError: It contains anything but letters, digits and ``._-/``, or a part of dots only.
    """
    if not _ID.fullmatch(name) or any(not part.strip(".") for part in name.split("/")):
        raise UserError(f"the id {name!r} of an item may contain letters, digits and ._-/ only")
    return name


def _flac(pcm: Pcm) -> bytes:
    """Encoded in memory: libsndfile does not report a full disk."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, float_to_pcm16(pcm), SAMPLE_RATE, format="FLAC")
    return encoded.getvalue()


def loudness(pcm: Pcm) -> str:
    """One digit for each 80 ms: 9 at the recording's peak, and one less for every 3 dB below it."""
    frame = SAMPLE_RATE * 2 // 25
    frames = pcm[: len(pcm) // frame * frame].reshape(-1, frame)
    levels = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
    peak = max(float(levels.max(initial=0.0)), 1e-4)
    steps = 9 + 20 * np.log10(np.maximum(levels / peak, 1e-9)) / 3
    return "".join(str(int(step)) for step in np.clip(np.round(steps), 0, 9))


def _read_scores(path: Path) -> dict[str, Any]:
    remedy = "delete it, and `personaplex eval score` writes it again"
    return read_stored(path, dict, _SCORE_KEYS, remedy)


def _call(record: dict[str, Any]) -> Call:
    events = tuple(Event(**event) for event in record.pop("events"))
    return Call(events=events, wanted=tuple(record.pop("wanted")), **record)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
