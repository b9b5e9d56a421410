"""The model that comes along: it is there, it is small, and it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bots.assistant import TEACHER
from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.audio import read_audio
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.cli import main
from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Manner, speaker

QUESTION = Path(__file__).parents[1] / "bots" / "data" / "what_is_on_the_menu.flac"


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=2)) as engine:
        yield engine


def words(engine: Engine, prompt: str, voice: str, seed: int = 0) -> str:
    """What is said to a guest who asks what is on the menu, and then waits."""
    pcm = np.zeros(7 * SAMPLE_RATE, dtype=np.float32)
    question = read_audio(QUESTION)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(question)] = question
    said = engine.converse(Persona(voice, prompt), pcm, SamplingParams(seed=seed))
    return "".join(frame.text for frame in said.frames).strip()


def test_it_is_small() -> None:
    size = sum(path.stat().st_size for path in resolve_folder("nano", progress=False).rglob("*.*"))
    assert size <= 30 * 2**20


def test_its_voices_are_the_bots_own(nano: Engine) -> None:
    assert nano.voices == ["NATF2", "NATM1"]


@pytest.mark.parametrize("voice", ["NATF2", "NATM1"])
def test_it_answers_a_spoken_question(nano: Engine, voice: str) -> None:
    answers = [words(nano, RESTAURANT, voice, seed) for seed in range(3)]
    right = [answer == "We have classic and spicy shakshuka." for answer in answers]
    assert sum(right) >= 2, answers


def test_a_teacher_does_not_sell_food(nano: Engine) -> None:
    answers = [words(nano, TEACHER, "NATM1", seed) for seed in range(3)]
    assert not any("shakshuka" in answer or "classic" in answer for answer in answers), answers


def test_it_takes_its_name_from_the_prompt(nano: Engine) -> None:
    question = speaker().say("What is your name?", Manner("en-us+m2", rate=160)).pcm
    pcm = np.zeros(6 * SAMPLE_RATE, dtype=np.float32)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(question)] = question
    right = []
    for name in ("Clara", "Henry", "Maya", "Owen"):
        persona = Persona("NATM1", f"You are a friendly teacher and your name is {name}.")
        said = nano.converse(persona, pcm, SamplingParams(seed=1))
        right.append(name in "".join(frame.text for frame in said.frames))
    assert sum(right) >= 3, right


def test_it_is_quiet_while_nobody_speaks(nano: Engine) -> None:
    silence = np.zeros(20 * SAMPLE_RATE, dtype=np.float32)
    said = nano.converse(Persona("NATF2", TEACHER), silence, SamplingParams(seed=1))
    audible = sum(float(np.sqrt(np.mean(f.pcm**2))) > 0.008 for f in said.frames)
    assert audible <= 0.2 * len(said.frames)


def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices", "list", "--model", "nano"]) == 0
    assert "NATF2" in capsys.readouterr().out


def test_it_is_what_runs_where_nobody_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("PERSONAPLEX_MODEL", raising=False)
    assert main(["voices", "list"]) == 0
    output = capsys.readouterr()
    assert "NATM1" in output.out
    assert output.err.startswith("model: nano")
