"""A run's files: whole on the disk, and an error in one line where one is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipecat_personaplex.cli import main
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.judges import Answer, StoredJudge
from pipecat_personaplex.eval.run_files import replacing
from pipecat_personaplex.eval.run_folder import RunFolder
from tests.eval import folders
from tests.helpers.commands import one_line

NAME = "monologue_energy_none.json"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunFolder:
    """A run with scores."""
    made = folders.small_run(tmp_path / "run")
    assert main(["eval", "score", str(made.path)]) == 0
    capsys.readouterr()
    return made


@pytest.mark.parametrize(
    ("command", "file", "content", "message"),
    [
        ("score", "run.json", "", "is damaged: it is not valid JSON"),
        ("score", "run.json", "[]", "is damaged: it does not hold an object; restore it"),
        ("score", "run.json", "{}", "is damaged: it has no format; restore it"),
        ("score", "run.json", '{"format": 1}', "is damaged: it has no suite, title, items"),
        ("score", "items.jsonl", "7\n", "line 1, is no call of a run"),
        ("score", "words/0/x.json", '[{"word": "hi"', "delete the lines of x in items.jsonl"),
        ("score", "words/0/x.json", "{}", "is damaged: it does not hold a list"),
        ("score", "words/0/x.json", '[{"word": "hi"}]', "is damaged: it has no start, end"),
        ("score", "words/0/x.json", "[7]", "is damaged: it has no word, start, end"),
        ("score", f"scores/{NAME}", "\0" * 9, "delete it, and `personaplex eval score` writes"),
        ("table", f"scores/{NAME}", '{"summary"', "delete it, and `personaplex eval score` writes"),
        ("table", f"scores/{NAME}", '{"asr": 1}', "is damaged: it has no vad, judge, summary"),
    ],
)
def test_a_damaged_file_is_named(
    run: RunFolder,
    command: str,
    file: str,
    content: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run.path / file).write_text(content)
    assert main(["eval", command, str(run.path)]) == 2
    error = one_line(capsys.readouterr().err)
    assert str(run.path / file) in error and message in error


def test_what_the_error_says_helps(run: RunFolder) -> None:
    """Also for the page of scores whose call is to be run again."""
    (run.path / "scores" / NAME).unlink()
    folders.add_call(run, "y")
    assert main(["eval", "score", str(run.path)]) == 0
    first, _ = (run.path / "items.jsonl").read_text().splitlines(keepends=True)
    (run.path / "items.jsonl").write_text(first)
    page = run.path.parent / "page.html"
    assert main(["eval", "table", str(run.path), "--html", str(page)]) == 0
    assert '"id":"x"' in page.read_text() and '"id":"y"' not in page.read_text()


def test_temporary_files_of_a_killed_process_are_skipped(run: RunFolder) -> None:
    hidden = run.path / "scores" / f".0123abcd.{NAME}"
    hidden.write_text("{")
    later = (run.path / "scores" / NAME).stat().st_mtime + 9
    os.utime(hidden, (later, later))
    assert main(["eval", "table", str(run.path)]) == 0
    assert [name for name, _ in run.scores()] == [NAME.removesuffix(".json")]
    assert run.newest_scores()["asr"] == "monologue"


def test_a_damaged_transcript_or_judgement(run: RunFolder, tmp_path: Path) -> None:
    [call] = run.calls()
    path = run.file("asr/sphinx", call, ".json")
    path.parent.mkdir(parents=True)
    path.write_text("[{")
    with pytest.raises(UserError, match=r"0/x\.json is damaged: .*; delete it, and score again"):
        run.words(call, "asr/sphinx")

    class Judge:
        name = "four"

        def __call__(self, answer: Answer) -> str:
            return "Rating: 4"

    stored, answer = StoredJudge(Judge(), tmp_path / "judge"), Answer("", "", "")
    assert stored.rate(answer) == (4, 1)
    [file] = (tmp_path / "judge").iterdir()
    whole = file.read_text()
    for content in (whole[:20], "[]", '{"rating": 4}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"is damaged: .*; delete it, and the judge is asked"):
            stored.rate(answer)


def test_audio_and_words_are_on_the_disk_before_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computer that fails then never has the line of a call without its words."""
    run = folders.small_run(tmp_path / "run")
    synced: list[int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    folders.add_call(run, "y")
    call = next(call for call in run.calls() if call.id == "y")
    files = [run.file("audio", call, ".flac"), run.file("words", call, ".json")]
    assert synced == [file.stat().st_ino for file in [*files, run.path / "items.jsonl"]]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(OSError, match="No space") as raised, replacing(path) as temporary:
        temporary.write_text("half")
        Path("/dev/full").write_text("page")
    assert raised.value.filename == str(path)
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
