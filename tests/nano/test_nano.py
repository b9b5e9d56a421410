"""nano, the small model in this package: its size, its voices and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bots.assistant import TEACHER
from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.audio_files import read_audio
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
    """Return what the agent says to a caller who asks what is on the menu, and then waits."""
    pcm = np.zeros(7 * SAMPLE_RATE, dtype=np.float32)
    question = read_audio(QUESTION)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(question)] = question
    conversation = engine.converse(Persona(voice, prompt), pcm, SamplingParams(seed=seed))
    return "".join(frame.text for frame in conversation.frames).strip()


def test_size() -> None:
    size = sum(path.stat().st_size for path in resolve_folder("nano", progress=False).rglob("*.*"))
    assert size <= 30 * 2**20


def test_voices(nano: Engine) -> None:
    assert nano.voices == ["NATF2", "NATM1"]


@pytest.mark.parametrize("voice", ["NATF2", "NATM1"])
def test_answers_a_spoken_question(nano: Engine, voice: str) -> None:
    answers = [words(nano, RESTAURANT, voice, seed) for seed in range(3)]
    right = [answer == "We have classic and spicy shakshuka." for answer in answers]
    assert sum(right) >= 2, answers


def test_teacher_does_not_sell_food(nano: Engine) -> None:
    answers = [words(nano, TEACHER, "NATM1", seed) for seed in range(3)]
    assert not any("shakshuka" in answer or "classic" in answer for answer in answers), answers


def test_says_the_name_in_the_prompt(nano: Engine) -> None:
    question = speaker().say("What is your name?", Manner("en-us+m2", rate=160)).pcm
    pcm = np.zeros(6 * SAMPLE_RATE, dtype=np.float32)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(question)] = question
    right = []
    for name in ("Clara", "Henry", "Maya", "Owen"):
        persona = Persona("NATM1", f"You are a friendly teacher and your name is {name}.")
        conversation = nano.converse(persona, pcm, SamplingParams(seed=1))
        right.append(name in "".join(frame.text for frame in conversation.frames))
    assert sum(right) >= 3, right


def test_mostly_quiet_while_the_caller_is_silent(nano: Engine) -> None:
    silence = np.zeros(20 * SAMPLE_RATE, dtype=np.float32)
    conversation = nano.converse(Persona("NATF2", TEACHER), silence, SamplingParams(seed=1))
    audible = sum(float(np.sqrt(np.mean(f.pcm**2))) > 0.008 for f in conversation.frames)
    assert audible <= 0.2 * len(conversation.frames)


def test_command_line_accepts_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices", "list", "--model", "nano"]) == 0
    assert "NATF2" in capsys.readouterr().out


def test_default_model_without_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("PERSONAPLEX_MODEL", raising=False)
    assert main(["voices", "list"]) == 0
    output = capsys.readouterr()
    assert "NATM1" in output.out
    assert output.err.startswith("model: nano")
