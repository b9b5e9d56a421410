"""``personaplex offline --save-call`` and ``--continue``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import write_wav
from pipecat_personaplex.cli import main
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.history import WARM_UP_FRAMES
from pipecat_personaplex.protocol.call_file import SavedCall, read_call, write_call
from tests.helpers.commands import Codes, one_line, tokens
from tests.helpers.questions import question_and_pause

FRAMES = 70
PROMPT = "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen."


@pytest.fixture(scope="module")
def caller() -> Pcm:
    return question_and_pause(FRAMES).reshape(-1)


def talk(folder: Path, pcm: Pcm, *options: str | Path) -> dict[str, Codes]:
    """Run the command with nano; return the tokens."""
    write_wav(folder / "caller.wav", pcm)
    arguments: list[str | Path] = [
        *("offline", "--model", "nano", "--device", "cpu", "--greedy", "--input"),
        *(folder / "caller.wav", "--output", folder / "out.wav"),
        *("--output-text", folder / "out.json", "--save-tokens", folder / "out.npz"),
        *options,
    ]
    assert main([str(argument) for argument in arguments]) == 0
    return tokens(folder)


def text_prompt(folder: Path) -> str:
    return str(json.loads((folder / "out.json").read_text())["text_prompt"])


def test_a_saved_call_goes_on_token_for_token(caller: Pcm, tmp_path: Path) -> None:
    persona = ("--voice", "NATM1", "--text-prompt", PROMPT)
    whole = talk(tmp_path, caller, *persona)
    assert sum(whole["text_tokens"] > 3) > 5
    cuts = [0, WARM_UP_FRAMES, FRAMES]  # the warm-up covers the whole first part
    save = tmp_path / "one.call"
    parts = [
        talk(tmp_path, caller[: cuts[1] * FRAME_SAMPLES], *persona, "--save-call", save),
        talk(tmp_path, caller[cuts[1] * FRAME_SAMPLES :], "--continue", save),
    ]
    for name, codes in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts], axis=-1), codes)
    assert text_prompt(tmp_path) == PROMPT
    call = read_call(save)
    assert (call.model, call.persona.voice) == ("nano", "NATM1")
    assert call.history.tokens.shape == (WARM_UP_FRAMES, 17)


def test_the_persona_at_the_end_is_saved_and_may_be_replaced(caller: Pcm, tmp_path: Path) -> None:
    (tmp_path / "script.txt").write_text('0.4 prompt "You are a wise and friendly teacher."')
    script = ("--script", tmp_path / "script.txt")
    first = caller[: 10 * FRAME_SAMPLES]
    talk(tmp_path, first, *script, "--text-prompt", PROMPT, "--save-call", tmp_path / "a.call")
    talk(
        *(tmp_path, first, "--continue", tmp_path / "a.call"),
        *("--save-call", tmp_path / "b.call"),
    )
    assert text_prompt(tmp_path) == "You are a wise and friendly teacher."
    assert len(read_call(tmp_path / "b.call").history.tokens) == 20
    talk(tmp_path, first, "--continue", tmp_path / "b.call", "--text-prompt", PROMPT)
    assert text_prompt(tmp_path) == PROMPT


def test_calls_that_cannot_be_continued(
    caller: Pcm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "a.call"
    first = caller[: 2 * FRAME_SAMPLES]
    talk(tmp_path, first, "--save-call", save)
    capsys.readouterr()
    call = read_call(save)
    arguments = ["offline", "--model", "nano", "--input", str(tmp_path / "caller.wav")]
    arguments += ["--output", str(tmp_path / "new.wav"), "--continue", str(save)]

    def refusal(*more: str) -> str:
        assert main([*arguments, *more]) == 2
        assert not (tmp_path / "new.wav").exists()
        return one_line(capsys.readouterr().err)

    assert f"would overwrite the input {save}" in refusal("--save-call", str(save))
    call.history.tokens[0, 0] = 3_200
    write_call(save, call)
    assert "text tokens from 0 to 3199" in refusal() and "another model" in refusal()
    call.history.tokens[0, 0] = 0
    write_call(save, SavedCall("nano", type(call.persona)("/etc/passwd"), call.history))
    assert "/etc/passwd" in refusal() and "NATF2" in refusal()
    assert "the call of --continue has another voice" in refusal()
    assert "give it again with --voice FILE" in refusal()
    assert "--continue" not in refusal("--voice", "NATX9")
    save.write_bytes(save.read_bytes()[:-1])
    assert f"--continue {save} is not a saved call of version 1" in refusal()
    save.unlink()
    assert f"--continue {save}: there is no such file" in refusal()
