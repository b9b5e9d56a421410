"""Kyutai's checkpoints: flat ``config.json``, their file names, and Moshi, which has no voices.

The reference is ``moshi`` from PyPI, which wrote the files of these tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.export import save_quantized
from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint
from pipecat_personaplex.checkpoint.voices import MOSHI_VOICE, VoiceLibrary
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import CheckpointError, ConfigError
from tests.golden_data import CHECKPOINT
from tests.helpers.checkpoints import copy_tiny
from tests.helpers.kyutai import (
    CPU,
    NAMES,
    SMALL,
    assert_logits_agree,
    flat_config,
    peer_lm,
    write_kyutai,
)

pytestmark = pytest.mark.usefixtures("no_compiler")

FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as ``moshi`` saves one."""
    return write_kyutai(tmp_path_factory.mktemp("kyutai"), SMALL)


def load(folder: Path, **options: object) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32, **options)  # type: ignore[arg-type]


def test_a_flat_config_and_files_written_by_moshi_give_its_logits(folder: Path) -> None:
    ours = load(folder)
    assert ours.config.lm == SMALL.lm
    assert ours.config.mimi == SMALL.mimi
    assert_logits_agree(ours, peer_lm(SMALL, folder / NAMES["moshi_name"]), FRAMES)


def test_a_quantised_copy_has_the_names_of_a_release(folder: Path, tmp_path: Path) -> None:
    original_folder = shutil.copytree(folder, tmp_path / "original")
    flat = json.loads((folder / "config.json").read_text())
    del flat["model_type"]  # a flat config is Moshi's also without it
    (original_folder / "config.json").write_text(json.dumps(flat))
    save_quantized(original_folder, tmp_path / "copy", "int8")
    copy, original = load(tmp_path / "copy"), load(folder, quantization="int8")
    assert copy.quantization == "int8"
    for (name, ours), theirs in zip(
        copy.lm.state_dict().items(), original.lm.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert VoiceLibrary.of_model(str(tmp_path / "copy"), progress=False).names == [MOSHI_VOICE]


@torch.inference_mode()
def test_moshi_talks_as_in_its_own_package(folder: Path) -> None:
    """Greedy tokens of a call; ``moshi`` loses the first frame that it gets."""
    from moshi.models.lm import LMGen

    engine = Engine.load(folder, EngineConfig(device="cpu", max_sessions=1))
    assert engine.voices == [MOSHI_VOICE]
    noise = np.random.default_rng(0).normal(0, 0.1, FRAMES * FRAME_SAMPLES).astype(np.float32)
    with engine:
        call = engine.converse(Persona(MOSHI_VOICE), noise, SamplingParams.greedy())
    peer = LMGen(peer_lm(SMALL, folder / NAMES["moshi_name"]), use_sampling=False)
    with peer.streaming(1):
        peer.step(torch.zeros(1, 8, 1, dtype=torch.int64))
        for frame in call.frames:
            tokens = peer.step(torch.from_numpy(frame.user_codes)[None, :, None])
            assert tokens[0, 0, 0] == frame.text_token
            assert tokens[0, 1:, 0].tolist() == frame.agent_codes.tolist()
    assert len({frame.agent_codes.tobytes() for frame in call.frames}) > 3


def test_moshi_takes_no_text_prompt(folder: Path) -> None:
    with Engine.load(folder, EngineConfig(device="cpu", max_sessions=1)) as engine:
        with pytest.raises(ConfigError, match="Moshi, which takes no text prompt; leave"):
            engine.open_session(Persona(MOSHI_VOICE, "You are a waiter."), on_frame=print)
        # The slot is free.
        engine.open_session(Persona(MOSHI_VOICE), on_frame=print).close()


def test_a_personaplex_checkpoint_without_voices_is_refused(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    (folder / "voices.tgz").unlink()
    with pytest.raises(CheckpointError, match=r"has no voices\.tgz"):
        Engine.load(folder, EngineConfig(device="cpu"))


def test_a_flat_config_with_voices_is_personaplex(tmp_path: Path) -> None:
    """The golden checkpoint with its sections written flat gives the same model."""
    folder = copy_tiny(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    flat = {**values["lm"], "mimi_config_name": "mimi.json", "depformer_low_rank_embeddings": None}
    (folder / "mimi.json").write_text(json.dumps(values["mimi"]))
    (folder / "config.json").write_text(json.dumps(flat))
    assert read_config(folder / "config.json") == read_config(CHECKPOINT / "config.json")
    assert "NATF2" in Engine.load(folder, EngineConfig(device="cpu")).voices


def test_the_depth_width_may_follow_or_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for width in ([132] * 8, None):
        path.write_text(json.dumps(flat_config(SMALL, depformer_dim_feedforward=width)))
        assert read_config(path).lm.depformer_dim_feedforward == 132


HOSTILE_NAMES = [
    *("../model.safetensors", "/etc/passwd", "a/../../b", "..", ".hidden", "a\\b", "*", "[ab]"),
    *("file:///etc/passwd", "hf://owner", "hf://../x/y", "https://example.com/x", "", "a\0b"),
    *("x" * 5000, 5, ["model.safetensors"]),
]


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "tokenizer_name", "lora_name"])
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_name_cannot_leave_the_folder(tmp_path: Path, key: str, name: object) -> None:
    folder = copy_tiny(tmp_path)
    values = json.loads((folder / "config.json").read_text()) | {key: name}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"{key} must be the name of a file") as refused:
        load(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hibiki"}, r"model_type is 'hibiki'; implemented are: personaplex, moshi"),
        ({"conditioners": {"speaker": {"type": "lut"}}}, r"conditioners is .* only {} is"),
        ({"fuser": {"sum": ["speaker"]}}, "fuser is .* conditions on the model are not"),
        ({"fuser": 3}, "fuser is 3"),
        ({"quantize": True}, "quantize is True; only False is implemented"),
        ({"text_card_out": 5}, "text_card_out is 5; only text_card, 320, is implemented"),
        ({"depformer_weights_per_step_schedule": [0] * 8}, "per_step_schedule is .* only None"),
        ({"depformer_dim_feedforward": [132, 264]}, "depformer_dim_feedforward must be int"),
        ({"depformer_dim_feedforward": None, "hidden_scale": 1e300}, "does not follow"),
        ({"depformer_dim_feedforward": None, "hidden_scale": "x"}, "does not follow"),
        ({"n_q": 32}, "lm.n_q is 32; only 16 is implemented"),
        ({"dim": 1 << 40}, "lm.dim must be above 0 and at most"),
        ({"num_layers": 10**9}, "lm.num_layers must be above 0 and at most"),
        ({"norm": "layer_norm"}, "lm.norm is 'layer_norm'"),
        ({"dim_feedforward": 7}, "unknown top-level key 'dim_feedforward'"),
        ({"lora_rank": 0}, "lora_rank must be an integer from 1"),
        ({"lora_rank": 10**12}, "lora_rank must be an integer from 1"),
        ({"lora_scaling": float("nan")}, "lora_scaling must be a number"),
        ({"lora_scaling": "2"}, "lora_scaling must be a number"),
        ({"lora": "yes"}, "lora must be true or false"),
        ({"mimi_config_name": "hf://kyutai/moshi/mimi.json"}, "mimi_config_name must be a file"),
        ({"mimi_config_name": "nowhere.json"}, "nowhere.json is not readable JSON"),
    ],
)
def test_a_config_of_another_architecture_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(flat_config(SMALL, **change)))
    with pytest.raises(ConfigError, match=message) as refused:
        read_config(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_of_another_name_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"has no moshi\.safetensors, codec/mimi\.saf.*, te"):
        load(tmp_path)


def test_another_rate_of_the_codec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mimi.json").write_text('{"sample_rate": 16000}')
    (tmp_path / "config.json").write_text('{"mimi_config_name": "mimi.json"}')
    with pytest.raises(ConfigError, match=r"mimi\.sample_rate is 16000; only 24000"):
        read_config(tmp_path / "config.json")
