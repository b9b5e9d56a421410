"""``personaplex voices``: the list of voices, and new voice files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipecat_personaplex.cli import main
from pipecat_personaplex.constants import SAMPLE_RATE
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.commands import one_line

ENCODE = ["voices", "encode", "--model", str(CHECKPOINT)]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices", "list", "--model", str(CHECKPOINT)]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["name", "frames", "seconds"] in rows
    assert ["NATF2", "20", "1.60"] in rows and ["NATM1", "15", "1.20"] in rows
    assert err == ""


@pytest.mark.parametrize("command", ["voices list", "quantize --quantization int8 --output"])
@pytest.mark.parametrize("given", ["option", "variable"])
def test_model_is_chosen_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    given: str,
    command: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    if given == "variable":
        monkeypatch.setenv("PERSONAPLEX_DEVICE", "cpu")
    arguments = command.split() + ([str(tmp_path / "made")] if "output" in command else [])
    assert main([*arguments, *(["--device", "cpu"] if given == "option" else [])]) == 0
    assert "the requested device is the CPU" in capsys.readouterr().err


# test_offline.py tests that the file sounds the same as its recording.
def test_encode_writes_a_file_that_the_reference_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "owen.pt"
    assert main([*ENCODE, str(VOICE_SAMPLE), "--output", str(path)]) == 0
    assert capsys.readouterr() == (f"{path}: 20 frames, 1.60 s\n", "")
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"embeddings", "cache"}
    assert content["embeddings"].shape == (19, 1, 1, 64)
    # The reference runs its model in bfloat16 and feeds the embeddings without a cast.
    assert content["embeddings"].dtype == torch.bfloat16
    assert (content["cache"].shape, content["cache"].dtype) == ((1, 17, 4), torch.int64)
    assert [entry.name for entry in tmp_path.iterdir()] == ["owen.pt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([str(VOICE_SAMPLE), "-o", "owen.wav"], ".pt or .safetensors"),
        ([str(VOICE_SAMPLE), "-o", "none/owen.pt"], "no folder"),
        ([str(VOICE_SAMPLE)], "--output"),
        (["-o", "owen.pt"], "Missing argument"),
        (["none.wav", "-o", "owen.pt"], "none.wav does not exist"),
        (["silent.wav", "-o", "owen.pt"], "silent"),
        (["short.wav", "-o", "owen.pt"], "0.10 s"),
    ],
)
def test_mistake_in_encoding_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write("short.wav", np.full(SAMPLE_RATE // 10, 0.1), SAMPLE_RATE)
    assert main([*ENCODE, *arguments]) == 2
    assert expected in one_line(capsys.readouterr().err)
    assert {entry.name for entry in tmp_path.iterdir()} == {"silent.wav", "short.wav"}
