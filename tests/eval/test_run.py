"""Runs: written as calls end, continued after an interruption, and scored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipecat_personaplex import Engine, SamplingParams
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.judges import Answer, StoredJudge
from pipecat_personaplex.eval.run_folder import RunFolder, checked_id, loudness
from pipecat_personaplex.eval.run_suite import (
    Plan,
    RunResult,
    describe_run,
    read_speed,
    run_suite,
    take_inventory,
)
from pipecat_personaplex.eval.run_target import check_target, only_writer
from pipecat_personaplex.eval.score_run import Scorer, safe_name, score_run
from pipecat_personaplex.eval.score_table import make_table, served_seconds
from pipecat_personaplex.eval.suites.registry import find_suite
from pipecat_personaplex.eval.voice_activity import energy_spans
from tests.eval import folders
from tests.golden_data import CHECKPOINT

MONOLOGUE = Scorer("monologue", None, "energy", energy_spans)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short recordings with events."""
    folder = tmp_path_factory.mktemp("calls")
    for index in range(3):
        events = [{"kind": "turn_end", "start": 0.4, "end": 0.4, "text": "hello"}]
        pcm = folders.recording(folders.CLIPS[index][:12_000], lead=0.1, tail=0.4)
        folders.write(folder, pcm, f"c{index}.wav", **{f"c{index}": {"events": events}})
    return folder


def plan(data: Path) -> Plan:
    return Plan(find_suite("folder"), data, "NATM1", (0, 1), SamplingParams())


def new_run(engine: Engine, plan: Plan, path: Path) -> tuple[RunFolder, int]:
    inventory = take_inventory(plan)
    settings = describe_run(plan, inventory, engine, str(CHECKPOINT))
    return RunFolder.create(path, settings), inventory.items


def run(engine: Engine, plan: Plan, path: Path, progress: Any = None) -> RunResult:
    folder, items = new_run(engine, plan, path)
    return run_suite(engine, plan, folder, items, progress)


def content(path: Path) -> dict[str, Any]:
    """Words and tokens of every call. Audio differs in its last bit from batch to batch."""
    run = RunFolder.open(path)
    return {f"{c.id} {c.seed}": (c.tokens, run.words(c), len(run.audio(c))) for c in run.calls()}


def test_twice_the_same(engine: Engine, data: Path, tmp_path: Path) -> None:
    results = [run(engine, plan(data), tmp_path / name) for name in "ab"]
    assert [(result.calls, result.failed) for result in results] == [(6, 0)] * 2
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    assert len(first) == 6 and first == second
    assert len({tokens for tokens, *_ in first.values()}) == 6
    scores = [score_run(RunFolder.open(tmp_path / name), MONOLOGUE) for name in "ab"]
    assert scores[0]["summary"] == scores[1]["summary"]
    seeds = scores[0]["summary"]["fixed"]["calls/turn_end.tor"]["seeds"]
    assert seeds.keys() == {"0", "1"}
    settings = RunFolder.open(tmp_path / "a").settings
    assert settings["voice"] == "NATM1" and settings["items"] == 3
    assert {"checkpoint_sha256", "commit", "machine", "sampling", "data_sha256"} <= settings.keys()


def test_an_interrupted_run_goes_on(engine: Engine, data: Path, tmp_path: Path) -> None:
    whole = run(engine, plan(data), tmp_path / "whole")

    def interrupt(done: int, total: int, rate: float) -> None:
        assert total == 6 and rate > 0
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(engine, plan(data), tmp_path / "run", interrupt)
    assert len(RunFolder.open(tmp_path / "run").calls()) == 2
    # A process that was killed while it wrote a line.
    with (tmp_path / "run" / "items.jsonl").open("a") as file:
        file.write('{"id": "c1", "se')
    assert len(RunFolder.open(tmp_path / "run").calls()) == 2
    rest = run(engine, plan(data), tmp_path / "run")
    assert (whole.calls, rest.calls) == (6, 4)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    lines = (tmp_path / "run" / "items.jsonl").read_text().splitlines()
    assert len({(line["id"], line["seed"]) for line in map(json.loads, lines)}) == 6
    assert run(engine, plan(data), tmp_path / "run").calls == 0
    parts = read_speed(RunFolder.open(tmp_path / "run"))
    assert [part["calls"] for part in parts] == [2, 4]
    assert served_seconds(RunFolder.open(tmp_path / "run")) == 0.08 + parts[1]["step_p50_ms"] / 1e3


def test_what_answers_are_compared_with_belongs_to_the_data(data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data, tmp_path / "data")
    hashes = set()
    for wanted in (None, [], ["Paris"], ["paris"]):
        annotation = json.loads((data / "c0.json").read_text())
        if wanted is not None:
            annotation["wanted"] = wanted
        (data / "c0.json").write_text(json.dumps(annotation))
        hashes.add(take_inventory(plan(data)).sha256)
    assert len(hashes) == 3, "nothing wanted is the same as no field"


def test_other_settings_are_refused(engine: Engine, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    new_run(engine, plan(data), path)
    for changed, name in (
        (replace(plan(data), voice="NATF2"), "voice"),
        (replace(plan(data), seeds=(0,)), "seeds"),
        (replace(plan(data), limit=1), "items|limit|data"),
        (replace(plan(data), sampling=SamplingParams(temperature_text=0.1)), "sampling"),
    ):
        with pytest.raises(UserError, match=rf"holds a run whose ({name}).* give another --out"):
            new_run(engine, changed, path)
    new_run(engine, plan(data), path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run; give another --out"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(UserError, match="it has no run"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="has format 99"):
        RunFolder.open(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = folders.small_run(tmp_path)
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"id": "y"}\n')
    with pytest.raises(UserError, match=r"items\.jsonl, line 2, is no call of a run: .* delete"):
        run.calls()


def test_a_full_disk(tmp_path: Path) -> None:
    run = folders.small_run(tmp_path)
    call = replace(run.calls()[0], id="y")
    (tmp_path / "items.jsonl").rename(tmp_path / "before.jsonl")
    (tmp_path / "items.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"y cannot be written to .* No space left .* goes on"):
        run.add(call, folders.silence(1), [])


def test_a_record_of_speed_that_a_full_disk_has_cut(tmp_path: Path) -> None:
    (tmp_path / "speed.jsonl").write_text('{"calls": 1}\n{"calls":')
    assert read_speed(RunFolder(tmp_path, {})) == [{"calls": 1}]


def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    with only_writer(path):
        check_target(path)  # the lock alone makes it no other folder
        RunFolder.create(path, {})
        with pytest.raises(UserError, match="another process is writing"), only_writer(path):
            pass
    with only_writer(path):
        check_target(path)


def test_where_a_run_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_target(tmp_path / "new" / "run")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is not a folder; give another --out"):
            check_target(path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # also for root
    with pytest.raises(UserError, match=f"no permission to write to {tmp_path}"):
        check_target(tmp_path / "run")


def test_a_failed_call_is_recorded_and_tried_again(
    engine: Engine, data: Path, tmp_path: Path
) -> None:
    broken = replace(plan(data), voice="NATX9")
    folder, items = new_run(engine, broken, tmp_path / "run")
    assert run_suite(engine, broken, folder, items).failed == 6
    assert all("NATX9" in call.error for call in folder.calls())
    with pytest.raises(UserError, match="no finished calls"):
        score_run(folder, MONOLOGUE)
    assert run_suite(engine, plan(data), folder, items).failed == 0
    assert len(folder.calls()) == 6 and not any(call.error for call in folder.calls())


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "a b", "/a", "a//b", "a\n", ".."])
def test_ids_become_paths_only_if_they_are_plain(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        checked_id(name)


def test_ids_of_the_suites_are_plain() -> None:
    assert checked_id("candor_turn_taking/12.clean") == "candor_turn_taking/12.clean"


def test_loudness_is_a_digit_a_frame() -> None:
    pcm = np.concatenate([folders.silence(0.8), np.full(1920 * 10, 0.5, np.float32)])
    assert loudness(pcm) == "0" * 10 + "9" * 10
    assert loudness(folders.silence(0.8)) == "0" * 10


class Counting:
    """A judge that counts its calls and cannot make up its mind at first."""

    name = "counting"

    def __init__(self, *replies: str):
        self.replies = list(replies)
        self.asked = 0

    def __call__(self, answer: Answer) -> str:
        self.asked += 1
        return self.replies[min(self.asked, len(self.replies)) - 1]


def test_a_judge_that_must_be_asked_again_counts_the_takeover_again(tmp_path: Path) -> None:
    judge = Counting("no idea", "hm", "Rating: 4")
    run = folders.small_run(tmp_path)
    result = score_run(run, replace(MONOLOGUE, judge=judge))
    assert judge.asked == 3
    [record] = result["records"]
    assert record["compat"].count(["interruption.tor", 1.0]) == 3
    assert record["fixed"].count(["interruption.tor", 1.0]) == 1
    assert ["interruption.judge", 4.0] in record["fixed"]
    again = score_run(run, replace(MONOLOGUE, judge=judge))
    assert judge.asked == 3 and again == result  # stored by content


def test_a_judge_without_a_rating(tmp_path: Path) -> None:
    judge = Counting("I cannot say.")
    assert StoredJudge(judge, tmp_path).rate(Answer("r", "c", "a")) == (None, 3)
    assert judge.asked == 3


def test_transcripts_from_files(tmp_path: Path) -> None:
    run = folders.small_run(tmp_path / "run")
    scorer = replace(MONOLOGUE, asr=f"files:{tmp_path / 'asr'}")
    with pytest.raises(UserError, match=r"0/x\.json is missing"):
        score_run(run, scorer)
    (tmp_path / "asr" / "0").mkdir(parents=True)
    path = tmp_path / "asr" / "0" / "x.json"
    path.write_text('{"chunks": 7}')
    with pytest.raises(UserError, match="must have the form"):
        score_run(run, scorer)
    chunks = [{"text": " hi", "timestamp": [2.5, 2.9]}, {"text": "you", "timestamp": [3.0, 4.0]}]
    path.write_text(json.dumps({"text": "hi you", "chunks": chunks}))
    result = score_run(run, scorer)
    assert dict(result["records"][0]["compat"])["interruption.latency"] == 1.0
    assert len(list(run.scores())) == 1


def test_scores_by_the_other_rules_are_kept(tmp_path: Path) -> None:
    """And computed again, so that both columns are of the same calls."""
    run = folders.small_run(tmp_path)
    fixed = replace(MONOLOGUE, rules=("fixed",))
    compat = replace(MONOLOGUE, rules=("compat",))
    assert score_run(run, fixed)["summary"].keys() == {"fixed"}
    before = score_run(run, compat)
    assert list(before["summary"]) == ["compat", "fixed"] and before == score_run(run, MONOLOGUE)
    assert score_run(run, fixed) == before
    folders.add_call(run, "y")
    after = score_run(run, fixed)
    assert {
        rules: after["summary"][rules]["g/interruption.tor"]["items"] for rules in after["summary"]
    } == {"compat": 2, "fixed": 2}
    assert make_table([run], []).header == [
        "",
        "monologue, energy, compat",
        "monologue, energy, fixed",
    ]


def test_a_group_with_slash_and_dot(tmp_path: Path) -> None:
    """In a run of an earlier version; the suite refuses such a group now."""
    run = folders.small_run(tmp_path, group="support/v1.2")
    score_run(run, MONOLOGUE)
    labels = [row[0] for row in make_table([run]).rows]
    assert "support/v1.2: interruption: takes the turn (TOR) ↑" in labels
    assert all(label.startswith("support/v1.2: interruption: ") for label in labels)
    assert labels.index("support/v1.2: interruption: latency, s ↓") > 0


def test_file_names_of_scores() -> None:
    assert safe_name("whisper:tiny.en") == "whisper-tiny.en"
    first, second = safe_name("whisper:/a/model"), safe_name("whisper:/b/model")
    assert first != second and first.startswith("model-") and "/" not in first
