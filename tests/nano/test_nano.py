"""nano, the small model in this package: its size, its voices and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bots.assistant import TEACHER
from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.cli import main
from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Manner, speaker
from training.nano.script import REFUSAL, ROLES, UNKNOWN

QUESTION = Path(__file__).parents[1] / "bots" / "data" / "what_is_on_the_menu.flac"


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=4)) as engine:
        yield engine


def answers(
    engine: Engine,
    calls: list[tuple[Persona, int]],
    question: Pcm,
    seconds: int,
    offset: float = 0.0,
) -> list[str]:
    """Return what the agents say to a caller who asks a question after 1 s, and then waits.

    The calls run side by side, each with its persona and seed.
    """
    pcm = np.zeros(seconds * SAMPLE_RATE, dtype=np.float32)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(question)] = question
    pcm += np.float32(offset)

    def said(call: tuple[Persona, int]) -> str:
        frames = engine.converse(call[0], pcm, SamplingParams(seed=call[1])).frames
        return "".join(frame.text for frame in frames).strip()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(said, calls))


def menu_answers(engine: Engine, prompt: str, voice: str) -> list[str]:
    """Three answers to "What is on the menu?"."""
    calls = [(Persona(voice, prompt), seed) for seed in range(3)]
    return answers(engine, calls, read_audio(QUESTION), 7)


def test_size() -> None:
    size = sum(path.stat().st_size for path in resolve_folder("nano", progress=False).rglob("*.*"))
    assert size <= 30 * 2**20


def test_voices(nano: Engine) -> None:
    assert nano.voices == ["NATF2", "NATM1"]


def test_answers_in_spite_of_a_dc_offset(nano: Engine) -> None:
    """An offset is inaudible, and large as here it makes the codec without its filter deaf."""
    calls = [(Persona("NATF2", RESTAURANT), seed) for seed in range(3)]
    right = "We have classic and spicy shakshuka."
    said = answers(nano, calls, read_audio(QUESTION), 7, offset=0.1)
    understood = said.count(right)
    assert understood >= 2, said
    config = EngineConfig(device="cpu", max_sessions=3, dc_blocker=False)
    with Engine.load("nano", config) as deaf:
        said = answers(deaf, calls, read_audio(QUESTION), 7, offset=0.1)
    assert said.count(right) < understood, said


@pytest.mark.parametrize("voice", ["NATF2", "NATM1"])
def test_answers_a_spoken_question(nano: Engine, voice: str) -> None:
    said = menu_answers(nano, RESTAURANT, voice)
    right = [answer == "We have classic and spicy shakshuka." for answer in said]
    assert sum(right) >= 2, said


def test_teacher_does_not_sell_food(nano: Engine) -> None:
    said = menu_answers(nano, TEACHER, "NATM1")
    assert not any("shakshuka" in answer or "classic" in answer for answer in said), said


def test_says_the_name_in_the_prompt(nano: Engine) -> None:
    question = speaker().say("What is your name?", Manner("en-us+m2", rate=160)).pcm
    names = ("Clara", "Henry", "Maya", "Owen")
    prompt = "You are a friendly teacher and your name is {}."
    calls = [(Persona("NATM1", prompt.format(name)), 1) for name in names]
    said = answers(nano, calls, question, 6)
    assert sum(name in text for name, text in zip(names, said, strict=True)) >= 3, said


def test_says_the_facts_in_the_prompt_and_no_others(nano: Engine) -> None:
    informed = f"{RESTAURANT} Open until 10:30 pm. Address: 12 Market Street."
    voices = ("en-us+m2", "en-us+m3", "en-us+f2")
    questions = [speaker().say("When do you close?", Manner(v, rate=160)).pcm for v in voices]
    for prompt, expected in (
        (informed, ["We are open until ten thirty."]),
        (RESTAURANT, [UNKNOWN, ROLES["restaurant"].answers[REFUSAL]]),
    ):
        call = [(Persona("NATM1", prompt), 0)]
        said = [answer for question in questions for answer in answers(nano, call, question, 6)]
        assert sum(answer in expected for answer in said) >= 2, said


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
