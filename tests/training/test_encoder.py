"""Turns of callers on disk, and the training of the codec's encoder on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from tests.training.models import random_codec
from tests.training.test_speech import needs_espeak
from tests.training.together import run_together
from training.nano import caller_turns, codec, encoder_data, wordings
from training.nano.__main__ import app
from training.nano.caller_turns import load_turns, speak, turns_file
from training.nano.clips import add_callers, encode_caller
from training.nano.codec import load_codec, load_finished
from training.nano.encoder import EncoderRun, train_encoder
from training.nano.encoder_data import CallersHeard
from training.nano.espeak import Manner, speaker
from training.nano.people import TurnSource
from training.nano.pool import Pool, callers_file
from training.nano.progress import load_state, save_state
from training.nano.recordings import Recording
from training.nano.turns import Turn, sample_turn

pytestmark = needs_espeak
CPU = torch.device("cpu")


def espeak_caller(
    recordings: Any, random: np.random.Generator, synthesisers: Any
) -> tuple[TurnSource, list[str]]:
    """In place of ``sample_caller``: needs no other synthesiser."""
    return lambda intent, source: sample_turn(intent, Manner("en-us"), source), ["hello", "menu"]


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the turns of 20 callers, two each, and a small codec."""
    monkeypatch.setattr(caller_turns, "sample_caller", espeak_caller)
    assert len(list(speak(tmp_path, 20, 2))) == 2
    parts = {f"mimi.{name}": value for name, value in random_codec().state_dict().items()}
    save_state(tmp_path / "codec.pt", {"parts": parts})
    monkeypatch.setattr(codec, "new_codec", random_codec)
    return tmp_path


def test_callers_are_spoken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_turns, "sample_caller", espeak_caller)
    assert list(speak(tmp_path, 20, 3, part=1, parts=2)) == [turns_file(tmp_path, 1)]
    before = turns_file(tmp_path, 1).read_bytes()
    assert list(speak(tmp_path, 20, 3)) == [turns_file(tmp_path, 0)]
    assert turns_file(tmp_path, 1).read_bytes() == before
    callers = load_turns(turns_file(tmp_path, 0))
    assert [len(caller) for caller in callers] == [3] * 10
    recording = Recording.of(callers[0][0])
    assert recording.intent in ("hello", "menu")
    assert recording.turn.words[-1][1] <= len(recording.turn.pcm) / SAMPLE_RATE + 1e-3


def test_a_turn_survives_its_way_to_the_disk() -> None:
    pcm = np.linspace(-1, 1, 100, dtype=np.float32)
    turn = Turn(pcm, (0.1, 0.2), [("Hi", 0.1), ("there", 0.4)], 0.1)
    result = Recording.of(Recording("hello", turn).row())
    assert result.intent == "hello"
    assert np.allclose(result.turn.pcm, pcm, atol=1e-4)
    assert (result.turn.pause, result.turn.words, result.turn.story_end) == (
        turn.pause,
        turn.words,
        turn.story_end,
    )


def test_phonemes_lie_in_their_words() -> None:
    words = [("menu", 0.4), ("please", 1.5)]
    turn = Turn(np.zeros(int(1.5 * SAMPLE_RATE), np.float32), (0.4, 1.0), words)
    found = encoder_data.with_phonemes(turn).phonemes
    ends = [index for index, (name, _) in enumerate(found) if name == "_"]
    first, second = found[: ends[0]], found[ends[0] + 1 : ends[1]]
    assert all(0 <= onset < 0.4 for _, onset in first) and len(first) >= 4
    assert all(1.0 <= onset < 1.5 for _, onset in second), "not in the pause"
    assert [name for name, _ in second] == [name for name, _ in encoder_data.pronounced("please")]


def test_a_batch_says_what_its_callers_say(spoken: Path) -> None:
    rows = [row for caller in load_turns(turns_file(spoken, 0)) for row in caller]
    batch = CallersHeard(rows, 4).batch(np.random.default_rng(1))
    frames = batch.word_ends.shape[1]
    assert batch.pcm.shape == (4, frames * FRAME_SAMPLES)
    assert batch.sounds.shape[:2] == (4, frames)
    known = wordings.caller_words()
    texts = {tuple(wordings.bare(w) for w, _ in Recording.of(row).turn.words) for row in rows}
    for ends in batch.word_ends:
        said = tuple(known[index] for index in ends[ends >= 0])
        assert said and any(set(said) <= set(text) for text in texts)
        last = int((ends >= 0).nonzero()[-1]) * FRAME_SECONDS
        assert 0 < last < frames * FRAME_SECONDS
    assert not torch.equal(batch.sounds[:, :1, 0], batch.sounds[:, 10:11, 0]), "words follow"


@pytest.mark.usefixtures("seconds_of_steps")
def test_only_the_encoder_changes_and_its_training_resumes(spoken: Path) -> None:

    def train(seconds: int) -> dict[str, Any]:
        run = EncoderRun(minutes=seconds / 60, batch=2, workers=0)
        train_encoder(spoken, run, CPU)
        return load_state(spoken / "encoder.pt")

    before = dict(load_codec(spoken / "codec.pt", CPU).named_parameters())
    assert train(2)["step"] == 2
    assert train(4)["step"] == 4
    changed = {
        name
        for name, parameter in load_finished(spoken, CPU).named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert "encoder.first.taps.weight" in changed
    assert all(name.startswith(("encoder", "downsample", "quantizer")) for name in changed)
    assert not any("centroids" in name or "output_proj" in name for name in changed)


TOGETHER = """
import sys
from pathlib import Path

import torch

from tests.training.models import random_codec
from training.nano import codec
from training.nano.encoder import EncoderRun, train_encoder

codec.new_codec = random_codec
run = EncoderRun(minutes=0.02, batch=2, workers=0, save_every=1)
train_encoder(Path(sys.argv[1]), run, torch.device("cpu"))
"""


def test_processes_train_the_encoder_together(spoken: Path) -> None:
    run_together(spoken, TOGETHER)
    assert load_state(spoken / "encoder.pt")["spent"] >= 1.2


def test_training_without_turns_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `speak` first"):
        train_encoder(tmp_path, EncoderRun(1), CPU)


def test_clips_encode_what_was_spoken(spoken: Path) -> None:
    mimi = load_codec(spoken / "codec.pt", CPU)
    assert list(add_callers(spoken, mimi, CPU, part=1, parts=2)) == [callers_file(spoken, 1)]
    assert list(add_callers(spoken, mimi, CPU)) == [callers_file(spoken, 0)]
    assert list(add_callers(spoken, mimi, CPU)) == []
    pool = Pool([0] * 8, [0] * 8, {}, {})
    pool.read_new_callers(spoken)
    assert len(pool.callers) == 20
    for caller in pool.callers:
        for intent, clips in caller.clips.items():
            assert intent in ("hello", "menu")
            for clip in clips:
                assert 0 < clip.start < clip.end < len(clip.codes)
                assert clip.word_ends and clip.word_ends[-1][0] <= clip.end + 1


def test_a_caller_speaks_through_several_microphones(spoken: Path) -> None:
    mimi = load_codec(spoken / "codec.pt", CPU)
    list(add_callers(spoken, mimi, CPU, part=0, parts=2, microphones=2))
    pool = Pool([0] * 8, [0] * 8, {}, {})
    pool.read_new_callers(spoken)
    assert len(pool.callers) == 20
    first, second = pool.callers[:2]
    assert first.clips.keys() == second.clips.keys()
    assert not torch.equal(first.background, second.background)
    lengths = [
        [clip.end - clip.start for clips in caller.clips.values() for clip in clips]
        for caller in (first, second)
    ]
    assert lengths[0] != lengths[1], "the second time, the turns have another speed"


def test_an_encoded_caller_has_a_background() -> None:
    utterance = speaker().say("What is on the menu?", Manner("en-us"))
    turn = Turn(utterance.pcm, None, [("menu", utterance.seconds)])
    random = np.random.default_rng(0)
    caller = encode_caller(random_codec(), [Recording("menu", turn)], random, CPU)
    assert caller.background.shape == (75, 8)
    assert list(caller.clips) == ["menu"]


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (["encoder", "--minutes", "1"], "run `speak` first"),
        (["clips"], "run `codec` or `adopt` first"),
        (["decoder", "--minutes", "1"], "run `codec` or `adopt` first"),
        (["rehearse"], "run `codec` or `adopt` first"),
        (["lm", "--minutes", "1"], "run `clips` first"),
        (["export"], "run `clips` first"),
    ],
)
def test_a_command_says_which_comes_before_it(
    command: list[str], first: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").touch()
    given = [*command, "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "250"})
    assert result.exit_code == 2
    assert first in result.output


@pytest.mark.parametrize("command", ["agent", "record", "speak", "clips"])
def test_a_part_beyond_the_last_is_refused(command: str, tmp_path: Path) -> None:
    given = ["--folder", str(tmp_path), "--part", "2", "--parts", "2"]
    result = CliRunner().invoke(app, [command, *given], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "with --parts 2, up to 1" in result.output
