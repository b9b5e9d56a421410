"""Files of a checkpoint with absurd numbers, or damaged: one clear error, and no memory taken."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.loader import load_checkpoint
from pipecat_personaplex.checkpoint.voice_files import Preset, write_preset
from pipecat_personaplex.checkpoint.voices import load_voice_file
from pipecat_personaplex.errors import CheckpointError, ConfigError, UserError
from tests.golden_data import CHECKPOINT

CONFIG = CHECKPOINT / "config.json"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"lm": {"num_layers": 1000000000}}',
        '{"lm": {"depformer_num_layers": 1000000}}',
        '{"lm": {"dim": 100000000}}',
        '{"lm": {"text_card": 99999999999}}',
        '{"lm": {"context": 1e400}}',
        '{"lm": {"hidden_scale": NaN}}',
        '{"lm": {"hidden_scale": 1' + "0" * 400 + "}}",
        '{"lm": {"dim": 1' + "0" * 5000 + "}}",
        '{"mimi": {"transformer": {"num_layers": 100000}}}',
        '{"mimi": {"seanet": {"n_filters": 1' + "0" * 400 + "}}}",
        '{"' + "x" * 100_000 + '": 1}',
        "[" * 100_000,
        " " * (2 << 20),
    ],
)
def test_absurd_numbers_are_refused_at_once(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"config\.json") as refused:
        read_config(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 3000
    assert time.monotonic() - started < 10


def test_a_checkpoint_of_the_released_size_passes(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "{}")).lm.num_layers == 32
    assert read_config(CONFIG).lm.dim == json.loads(CONFIG.read_text())["lm"]["dim"]


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "large"])
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    for path in CHECKPOINT.iterdir():
        shutil.copy(path, tmp_path)
    path = tmp_path / "tokenizer_spm_32k_3.model"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "noise": data[:100] + bytes(range(256)) * 4,
            "large": data + bytes(33 << 20),
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"tokenizer_spm_32k_3\.model.*download it again"):
        load_checkpoint(tmp_path, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("suffix", [".PT", ".SafeTensors"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    config = read_config(CONFIG)
    preset = Preset(torch.zeros(4, config.lm.dim), torch.zeros(17, 4, dtype=torch.int64))
    path = tmp_path / f"OWEN{suffix}"
    write_preset(preset, path)
    assert load_voice_file(path, "owen", config).frames == 5
    engine = Engine.load(CHECKPOINT, EngineConfig(device="cpu", max_sessions=1))
    engine.add_voice("owen", path)
    assert "owen" in engine.voices


def test_noise_is_no_voice(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"noise{suffix}"
        path.write_bytes(b"\xff" * 4096)
        with pytest.raises(UserError, match="noise"):
            load_voice_file(path, "noise", read_config(CONFIG))
