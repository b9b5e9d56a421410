"""Voice files: reading, writing, and content that is refused."""

from __future__ import annotations

import builtins
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipecat_personaplex import Engine
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.checkpoint import voice_files
from pipecat_personaplex.checkpoint.loader import random_model
from pipecat_personaplex.checkpoint.voices import (
    Voice,
    VoiceLibrary,
    encode_voice,
    export_voice,
    load_voice_file,
)
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.errors import VoiceError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.checkpoints import SMALL_MIMI, preset, pt

CONFIG = ModelConfig(lm=LMConfig(dim=64, num_heads=4, text_card=320))
ARCHIVE = CHECKPOINT / "voices.tgz"


def test_a_recording_becomes_the_preset_of_the_reference(loaded_engine: Engine) -> None:
    checkpoint = loaded_engine.checkpoint
    expected = VoiceLibrary.from_archive(ARCHIVE, checkpoint.config).get("NATF2")
    voice = encode_voice(
        read_audio(VOICE_SAMPLE), "f", lambda pcm: encode_stream(checkpoint.mimi, pcm)
    )
    assert voice.codes is not None
    assert voice.frames == expected.frames == 20
    made = voice_files.make_preset(voice.codes, checkpoint.lm, checkpoint.config)
    assert expected.embeddings is not None
    torch.testing.assert_close(made.embeddings, expected.embeddings, rtol=0, atol=1e-5)
    assert expected.cache is not None
    assert torch.equal(made.cache, expected.cache)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_exported_voice_loads_again(tmp_path: Path, suffix: str) -> None:
    config = ModelConfig(
        lm=LMConfig(
            dim=64,
            num_layers=1,
            num_heads=2,
            text_card=320,
            depformer_dim=16,
            depformer_dim_feedforward=48,
            depformer_num_heads=2,
            depformer_num_layers=1,
        ),
        mimi=SMALL_MIMI,
    )
    lm, _ = random_model(config, device=torch.device("cpu"), dtype=torch.bfloat16)
    codes = torch.randint(0, 2048, (9, 8), generator=torch.Generator().manual_seed(1))
    path = tmp_path / f"voice{suffix}"
    export_voice(codes, lm, config, path)
    loaded = load_voice_file(path, "mine", config)
    assert loaded.frames == len(codes)
    made = voice_files.make_preset(codes, lm, config)
    assert loaded.embeddings is not None
    assert loaded.embeddings.dtype == torch.bfloat16
    assert torch.equal(loaded.embeddings, made.embeddings)
    assert loaded.cache is not None
    assert torch.equal(loaded.cache, made.cache)
    assert loaded.digest == Voice("other", embeddings=made.embeddings, cache=made.cache).digest


def test_export_to_a_missing_folder_or_an_unknown_format(tmp_path: Path) -> None:
    content = voice_files.Preset(torch.zeros(3, 64), torch.zeros(17, 4, dtype=torch.int64))
    with pytest.raises(VoiceError, match=r"ends in \.pt or \.safetensors, not '\.wav'"):
        voice_files.write_preset(content, tmp_path / "voice.wav")
    with pytest.raises(VoiceError, match="cannot be written: No such file"):
        voice_files.write_preset(content, tmp_path / "no" / "voice.pt")


def test_voice_files_of_each_float_type(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        content = preset() | {"embeddings": preset()["embeddings"].to(dtype)}
        (tmp_path / "voice.pt").write_bytes(pt(content))
        (tmp_path / "voice.safetensors").write_bytes(safetensors.torch.save(content))
        one = load_voice_file(tmp_path / "voice.pt", "v", CONFIG)
        other = load_voice_file(tmp_path / "voice.safetensors", "v", CONFIG)
        assert one.digest == other.digest
        assert one.frames == 7
        assert one.embeddings is not None
        assert one.embeddings.dtype == dtype


class Explosive:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("import builtins; builtins.exploded = True",))


def deflated_bomb() -> bytes:
    """A .pt whose one tensor is 200 MB of zeros, deflated."""
    stored = io.BytesIO(pt({"embeddings": torch.zeros(10)}))
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item.filename, bytes(200 << 20) if "/data/" in item.filename else data)
    return packed.getvalue()


def with_damaged_name() -> bytes:
    """A .pt whose directory has a name that is said to be UTF-8 and is not."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        target.writestr("\u00e9", b"x")
    return packed.getvalue().replace("\u00e9".encode(), b"\xff\xff")


NOT_UTF8 = with_damaged_name()
HUGE = torch.zeros(1, 1, 1, 64).expand(1 << 40, 1, 1, 64)
NAN = preset()["embeddings"].clone()
NAN[2, 0, 0, 5] = torch.nan


def with_token(stream: int, token: int) -> Tensor:
    cache = preset()["cache"].clone()
    cache[0, stream, 1] = token
    return cache


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is cut off, not a .pt file"),
        (b"hello", "is cut off, not a .pt file"),
        (pt(preset())[:-200], "is cut off, not a .pt file"),
        (pt(Explosive()), "something other than tensors"),
        (pickle.dumps(Explosive()), "something other than tensors"),
        (deflated_bomb(), "unpacks to more than 64 MiB"),
        (bytes(65 << 20), "larger than 64 MiB"),
        (pt([1, 2]), "holds no tensor 'embeddings'"),
        (pt({"embeddings": [1.0]}), "holds no tensor 'embeddings'"),
        (pt({"embeddings": preset()["embeddings"]}), "holds no tensor 'cache'"),
        (
            pt(preset() | {"embeddings": torch.zeros(6, 64)}),
            r"expected \[1\.\.2998, 1, 1, 64\]",
        ),
        (pt(preset() | {"embeddings": torch.zeros(())}), r"expected \[1\.\.2998, 1, 1, 64\]"),
        (pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 32)}), "made for another model"),
        (pt(preset() | {"embeddings": torch.zeros(0, 1, 1, 64)}), "made for another model"),
        (pt(preset() | {"embeddings": HUGE}), "made for another model"),
        (pt(preset() | {"embeddings": NAN}), "must be finite floats"),
        (
            pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 64).int()}),
            "must be finite floats",
        ),
        (
            pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 64).to_sparse()}),
            "holds no tensor",
        ),
        (pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 64, device="meta")}), "holds no tensor"),
        (NOT_UTF8, "not a readable .pt file"),
        (pt(preset() | {"cache": torch.zeros(1, 17, 3).long()}), r"expected \[1, 17, 4\]"),
        (
            pt(preset() | {"cache": torch.zeros(1, 17, 4)}),
            r"expected \[1, 17, 4\] torch.int64",
        ),
        (pt(preset() | {"cache": with_token(0, 321)}), "tokens outside"),
        (pt(preset() | {"cache": with_token(1, 2049)}), "tokens outside"),
        (pt(preset() | {"cache": with_token(16, -2)}), "tokens outside"),
    ],
)
def test_pt_files_that_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(VoiceError, match=expected) as caught:
        load_voice_file(path, "bad", CONFIG)
    assert "\n" not in str(caught.value)
    assert not hasattr(builtins, "exploded")


def test_initial_and_zero_tokens_are_allowed(tmp_path: Path) -> None:
    cache = with_token(0, 320)
    cache[0, 1, 0], cache[0, 2, 0] = 2048, -1
    (tmp_path / "voice.pt").write_bytes(pt(preset() | {"cache": cache}))
    loaded = load_voice_file(tmp_path / "voice.pt", "v", CONFIG)
    assert loaded.cache is not None
    assert torch.equal(loaded.cache, cache[0])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bad.safetensors", b"", "is not a safetensors file"),
        ("bad.safetensors", b"\xff" * 100, "is not a safetensors file"),
        (
            "bad.safetensors",
            safetensors.torch.save({"cache": preset()["cache"]}),
            "holds no tensor 'embeddings'",
        ),
        ("voice.wav", b"RIFF", r"must be a \.pt or \.safetensors file, not '\.wav'"),
    ],
)
def test_other_files_that_are_refused(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VoiceError, match=expected):
        load_voice_file(tmp_path / name, "bad", CONFIG)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(VoiceError, match="cannot be read: "):
        load_voice_file(tmp_path / name, "bad", CONFIG)
