"""``personaplex eval``: from a benchmark's folder to tables, pages and pictures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

from pipecat_personaplex import Engine
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
from pipecat_personaplex.checkpoint.file_names import MIMI_FILE, TOKENIZER_FILE, VOICES_FILE
from pipecat_personaplex.cli import main
from pipecat_personaplex.eval import plugins
from pipecat_personaplex.eval.run_folder import RunFolder
from pipecat_personaplex.eval.run_suite import other_files_hash
from pipecat_personaplex.eval.run_target import only_writer
from tests.eval import folders
from tests.golden_data import CHECKPOINT
from tests.helpers.commands import one_line

NANO = Path("pipecat_personaplex/nano")
TINY = ("--model", str(CHECKPOINT), "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.fdb_v1(tmp_path_factory.mktemp("fdb"))


@pytest.fixture(scope="module")
def run(data: Path, nano: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nano on a folder of Full-Duplex-Bench's shape, stopped once and continued."""
    path = tmp_path_factory.mktemp("runs") / "fdb"
    command = ["eval", "run", "fdb-v1", "--data", str(data), "--model", "nano", "--device", "cpu"]
    command += ["--out", str(path), "--seeds", "1", "--sessions", "5", "--voice", "NATM1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipecat_personaplex.cli.eval._load", lambda model, config: nano)
        try:
            assert main([*command, "--no-score"]) == 0
            lines = (path / "items.jsonl").read_text().splitlines(keepends=True)
            assert len(lines) == 5
            (path / "items.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
            assert main(command) == 0
        finally:
            nano.start()  # for other tests: the command has stopped it
    yield path


def test_a_run_that_was_stopped_goes_on(run: Path) -> None:
    records = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()]
    assert [record["calls"] for record in records] == [5, 2]
    assert len(RunFolder.open(run).calls()) == 5


def test_a_folder_that_another_process_writes_is_refused_before_a_model_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipecat_personaplex.cli.eval._load", lambda *_: pytest.fail("loaded"))
    command = ["eval", "run", "fdb-v1", "--data", str(data), "--model", "nano"]
    with only_writer(tmp_path / "run"):
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "another process is writing" in one_line(capsys.readouterr().err)


def test_a_run_goes_on_with_the_same_files_only(
    run: Path,
    nano: Engine,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another codec, tokenizer or archive of voices makes another call of the same weights."""
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder)
    monkeypatch.setattr("pipecat_personaplex.cli.eval._load", lambda model, config: nano)
    command = ["eval", "run", "fdb-v1", "--data", str(data), "--model", str(folder)]
    command += ["--out", str(run), "--seeds", "1", "--voice", "NATM1", "--device", "cpu"]
    hashes = {other_files_hash(CheckpointFiles.of(folder))}
    for name in (MIMI_FILE, TOKENIZER_FILE, VOICES_FILE):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b"\0")
        hashes.add(other_files_hash(CheckpointFiles.of(folder)))
        if name != VOICES_FILE:
            assert main(command) == 2
            assert "other_files_sha256" in one_line(capsys.readouterr().err)
        (folder / name).write_bytes(whole)
    assert len(hashes) == 4


def test_the_layout_for_the_benchmarks_own_scripts(run: Path, data: Path) -> None:
    folder = run / "fdb" / "monologue" / "0" / "candor_turn_taking" / "3"
    pcm, rate = soundfile.read(folder / "output.wav", dtype="float32")
    original = data / "v1.0" / "candor_turn_taking" / "3"
    assert rate == 24_000
    assert len(pcm) / rate == pytest.approx(
        soundfile.info(original / "input.wav").duration, abs=1e-3
    )
    assert (folder / "turn_taking.json").read_text() == (original / "turn_taking.json").read_text()
    assert (folder / "input.wav").is_symlink()
    content = json.loads((folder / "output.json").read_text())
    assert content["chunks"] and len(content["chunks"][0]["timestamp"]) == 2
    assert content["text"].startswith(content["chunks"][0]["text"])


def test_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "table", str(run), "--markdown"]) == 0
    text = capsys.readouterr().out
    header, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "monologue, energy, compat" in header and "kyutai" in header
    [latency] = [row for row in rows if row.startswith("| turn: turn end: latency, s ↓")]
    assert re.search(r"\| \d\.\d{3} \[.*n=1 .*\| 0\.170 \| 0\.070 \| 0\.219 \|", latency)
    served = next(row for row in rows if "latency, s, served" in row and "turn" in row)
    values = [float(re.findall(r"\| (\d\.\d{3}) \[", row)[0]) for row in (latency, served)]
    assert values[1] > values[0] + 0.08
    assert "voice NATM1" in text and "wall clock" in text
    [backchannels] = [row for row in rows if row.startswith("| backchannel: narration: takes")]
    assert "0.273" in backchannels and "0.182 (fixed)" in backchannels


def test_another_transcriber(
    run: Path,
    whisper_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whisper and Silero, on two of the calls."""
    # The table breaks its lines with the length of this name, which is else a path of the machine.
    (tmp_path / "tiny-english").symlink_to(whisper_model)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    shutil.copytree(run, path, symlinks=True)
    lines = (path / "items.jsonl").read_text().splitlines(keepends=True)
    two = [line for line in lines if json.loads(line)["group"] in ("turn", "interruption")]
    (path / "items.jsonl").write_text("".join(two))
    command = ["eval", "score", str(path), "--asr", "whisper:tiny-english", "--vad", "silero"]
    assert main([*command, "--judge", "rules"]) == 0
    assert "silero, compat" in capsys.readouterr().out
    assert len(list(RunFolder.open(path).scores())) == 2
    [asr] = (path / "asr").iterdir()
    words = json.loads((asr / "0" / "candor_turn_taking" / "3.json").read_text())
    assert len(words) >= 2
    assert (asr / "tail-0" / "0" / "synthetic_user_interruption" / "1.json").is_file()
    [layout] = [folder for folder in (path / "fdb").iterdir() if folder.name != "monologue"]
    assert len(list(layout.rglob("output.json"))) == 2


def test_page_and_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, plots = tmp_path / "page.html", tmp_path / "plots"
    command = ["eval", "table", str(run), "--html", str(page), "--plots", str(plots)]
    assert main([*command, "--against", "none"]) == 0
    text = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "http-equiv" in text
    [data] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    calls = json.loads(data)["calls"]
    assert len(calls) == 5 and all(call["events"] for call in calls)
    assert all((page.parent / unquote(call["audio"])).is_file() for call in calls)
    for name in ("scores.png", "times.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
    assert "kyutai" not in capsys.readouterr().out


def test_the_run_describes_itself(run: Path) -> None:
    settings = json.loads((run / "run.json").read_text())
    assert settings["suite"] == "fdb-v1" and settings["seeds"] == [0]
    assert settings["voice"] == "NATM1" and settings["items"] == 5
    assert len(settings["prompts"]) == 2 and len(settings["checkpoint_sha256"]) == 16


def test_selftest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's output and exit code; tests/eval/test_selftest.py runs it with nano."""
    tone = np.sin(np.arange(24_000, dtype=np.float32)) / 2
    monkeypatch.setattr("pipecat_personaplex.cli.eval._load", lambda *_: nullcontext())
    monkeypatch.setattr("pipecat_personaplex.eval.selftest.record_voice", lambda engine: tone)
    monkeypatch.setattr("pipecat_personaplex.eval.selftest.check_nano", lambda *_: iter(()))
    assert main(["eval", "selftest"]) == 0
    assert re.search(r"\d{3} exact scores .* 0 wrong", capsys.readouterr().out)
    monkeypatch.setattr("pipecat_personaplex.eval.scoring.takeover.takes_turn", bool)
    assert main(["eval", "selftest"]) == 1
    captured = capsys.readouterr()
    assert "FAIL nods in a pause" in captured.out
    assert "the self-test failed" in one_line(captured.err)


@pytest.mark.measurement
def test_a_batch_of_16_is_at_least_five_times_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "speed", "--model", "nano", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    print(text)
    [ratio] = re.findall(r"16 at once: ([\d.]+) times as fast as 1", text)
    assert "the tokens of all 32 calls are the same" in text
    assert float(ratio) >= 5


@pytest.mark.measurement
def test_two_hundred_calls_of_nano_twice(tmp_path: Path) -> None:
    """The same seeds give the same tokens and figures, in batches of 16 and of 5."""
    summaries = []
    for sessions in ("16", "5"):
        out = tmp_path / sessions
        command = ["eval", "run", "nano", "--model", "nano", "--out", str(out)]
        assert main([*command, "--sessions", sessions]) == 0
        [(_, scores)] = RunFolder.open(out).scores()
        assert scores["calls"] == 3 * 208 and (out / "page.html").is_file()
        summaries.append((scores["summary"], [c.tokens for c in RunFolder.open(out).calls()]))
    assert summaries[0][1] == summaries[1][1]
    for key, summary in summaries[0][0]["fixed"].items():
        assert summary["mean"] == pytest.approx(summaries[1][0]["fixed"][key]["mean"], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "fdb-v1", "--out", "x"], "suite fdb-v1 needs --data DIR; download"),
        (["run", "fdb-v2", "--out", "x"], "suite 'fdb-v2' is unknown; it must be one of"),
        (["run", "nano", "--out", "x", "--data", "."], "leave out --data"),
        (
            ["run", "nano", "--out", "x", "--seeds", "0"],
            "a number of seeds from 1 to 1000, such as 3",
        ),
        (
            ["run", "nano", "--out", "x", "--seeds", "1,1"],
            "a number of seeds from 1 to 1000, such as 3",
        ),
        (
            ["run", "nano", "--out", "x", "--seeds", "a"],
            "a number of seeds from 1 to 1000, such as 3",
        ),
        (
            ["run", "nano", "--out", "x", "--seeds", "9" * 23],
            "a number of seeds from 1 to 1000, such as 3",
        ),
        (["run", "nano", "--out", "x", "--voice", "no.wav"], "--voice no.wav: there is no such"),
        (["run", "nano", "--out", "x", "--temperature-text", "11"], "from 0 (greedy) to 10"),
        (["run", "nano"], "--out"),
        (["score", "nowhere"], "nowhere is not a run"),
        (["score", "nowhere", "--asr", "siri"], "nowhere is not a run"),
        (["table", "nowhere"], "nowhere is not a run"),
        (["speed", "--sessions", "1,x"], "--sessions must be numbers like 1,16"),
        (["speed", "--sessions", "0"], "--sessions must be numbers like 1,16"),
        (["run", "nano", "--out", "x", "--voice", "nowhere/kim"], "nowhere/kim: there is no such"),
        (["latency", "ftp://x"], "must be bot, http://host:port"),
        (["latency", "http://[::1"], "'http://[::1' must be bot, http://host:port"),
        (["latency", "bot", "--floor", "http://[x"], "'http://[x' must be bot, http://host:port"),
        (["latency", "ws://x:1", "--transport", "webrtc"], "does not fit this address"),
        (["latency", "bot", "--input", "no.wav"], "no.wav does not exist"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 2
    assert message in one_line(capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_more_mistakes(
    run: Path,
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for arguments, message in (
        (["score", str(run), "--asr", "siri"], "'siri' is unknown"),
        (["score", str(run), "--judge", "openai:gpt-4o"], "OPENAI_API_KEY"),
        (["table", str(run), "--against", "me"], "--against must be of card, paper, kyutai"),
    ):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert main(["eval", *arguments]) == 2
        assert message in one_line(capsys.readouterr().err)
    out = ["--data", str(data), "--out", str(run)]
    assert main(["eval", "run", "fdb-v1", *TINY, *out, "--voice", "NATM1", "--seeds", "1"]) == 2
    assert "checkpoint_sha256" in one_line(capsys.readouterr().err)
    monkeypatch.setattr("pipecat_personaplex.cli.eval._load", lambda *_: pytest.fail("loaded"))
    assert main(["eval", "run", "fdb-v1", *TINY, *out, "--voice", "NATX9"]) == 2
    assert "this checkpoint has: NATF2, NATM1" in one_line(capsys.readouterr().err)
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    assert main(["eval", "table", str(run), "--plots", str(tmp_path)]) == 2
    assert "--plots needs matplotlib" in one_line(capsys.readouterr().err)


def test_interrupted(
    data: Path,
    nano: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def bar(title: str, unit: str) -> Iterator[Callable[[int, int, float], None]]:
        def update(done: int, total: int, rate: float) -> None:
            raise KeyboardInterrupt

        yield update

    monkeypatch.setattr("pipecat_personaplex.cli.progress.rate_bar", bar)
    monkeypatch.setattr("pipecat_personaplex.cli.eval._load", lambda model, config: nano)
    out = tmp_path / "run"
    command = ["eval", "run", "fdb-v1", "--data", str(data), "--model", "nano", "--out", str(out)]
    assert main([*command, "--seeds", "1", "--sessions", "5"]) == 130
    nano.start()
    hint, error = capsys.readouterr().err.splitlines()
    assert hint == f"{out}: 1 of 5 calls are finished; the same command goes on"
    assert error == "error: interrupted"


def test_a_recording_as_voice(tmp_path: Path) -> None:
    calls, out = tmp_path / "calls", tmp_path / "run"
    folders.write(calls, folders.CLIPS[0][:12_000], "a.wav", a={"events": []})
    noise = np.random.default_rng(0).normal(0, 0.05, 24_000).astype(np.float32)
    soundfile.write(tmp_path / "kim.wav", noise, 24_000)
    command = ["eval", "run", "folder", *TINY, "--data", str(calls), "--out", str(out)]
    voice = ["--voice", str(tmp_path / "kim.wav"), "--seeds", "1", "--sessions", "1"]
    assert main([*command, *voice, "--no-score"]) == 0
    settings = RunFolder.open(out).settings
    assert settings["voice"] == "kim" and len(settings["voice_sha256"]) == 16
