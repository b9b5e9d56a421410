"""Voices: presets, files, samples; and what is refused."""

from __future__ import annotations

import builtins
import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import normalize_loudness, read_audio
from pipecat_personaplex.checkpoint import voice_files, voices
from pipecat_personaplex.checkpoint.loader import random_model
from pipecat_personaplex.checkpoint.voices import (
    Voice,
    VoiceLibrary,
    encode_voice,
    export_voice,
    load_voice_file,
)
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.errors import InvalidAudio, VoiceError, VoiceNotFound
from pipecat_personaplex.models.config import LMConfig, MimiConfig, ModelConfig
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

CONFIG = ModelConfig(lm=LMConfig(dim=64, num_heads=4, text_card=320))
ARCHIVE = CHECKPOINT / "voices.tgz"


def preset(frames: int = 6) -> dict[str, Tensor]:
    return {
        "embeddings": torch.randn(frames, 1, 1, 64, generator=torch.Generator().manual_seed(0)),
        "cache": torch.full((1, 17, 4), 3),
    }


def pt(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def sample() -> Voice:
    codes = torch.randint(0, 2048, (9, 8), generator=torch.Generator().manual_seed(1))
    return Voice("sample", codes=codes)


# Samples


def test_a_sample_becomes_the_reference_preset_bit_for_bit(loaded_engine: Engine) -> None:
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
        mimi=MimiConfig(dimension=16, n_filters=2, num_layers=1, num_heads=2, codebook_dim=8),
    )
    lm, _ = random_model(config, device=torch.device("cpu"), dtype=torch.bfloat16)
    codes = sample().codes
    assert codes is not None
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


def test_export_to_a_place_or_format_there_is_not(tmp_path: Path) -> None:
    content = voice_files.Preset(torch.zeros(3, 64), torch.zeros(17, 4, dtype=torch.int64))
    with pytest.raises(VoiceError, match=r"ends in \.pt or \.safetensors, not '\.wav'"):
        voice_files.write_preset(content, tmp_path / "voice.wav")
    with pytest.raises(VoiceError, match="cannot be written: No such file"):
        voice_files.write_preset(content, tmp_path / "no" / "voice.pt")


def test_a_recording_is_normalised_and_padded_to_whole_frames() -> None:
    pcm = read_audio(VOICE_SAMPLE)[:19_201]
    heard: list[Tensor] = []

    def encode(samples: Tensor) -> Tensor:
        heard.append(samples)
        return torch.zeros(len(samples) // 1920, 8, dtype=torch.int64)

    voice = encode_voice(pcm, "mine", encode)
    assert voice.frames == 11
    assert heard[0].dtype == torch.float32
    assert len(heard[0]) == 11 * 1920
    np.testing.assert_array_equal(heard[0][:19_201], normalize_loudness(pcm, -24))
    assert not heard[0][19_201:].any()


@pytest.mark.parametrize(
    ("pcm", "expected"),
    [
        (np.zeros(24_000, np.float64), "finite float32 mono"),
        (np.zeros((24_000, 2), np.float32), "finite float32 mono"),
        (np.full(24_000, np.nan, np.float32), "finite float32 mono"),
        (np.zeros(24_000, np.float32), "is silent"),
        (np.ones(100, np.float32), "loudness needs at least"),
        (np.zeros(2_999 * 1920 + 1, np.float32), "takes 3000 frames of 80 ms"),
    ],
)
def test_recordings_that_cannot_be_used(pcm: np.ndarray, expected: str) -> None:
    with pytest.raises(InvalidAudio, match=expected):
        encode_voice(pcm, "mine", lambda _: pytest.fail("must not be encoded"))


def test_digests_tell_contents_apart_and_not_names() -> None:
    voice = sample()
    assert voice.codes is not None
    changed = voice.codes.clone()
    changed[-1, -1] += 1
    assert Voice("another name", codes=voice.codes.clone()).digest == voice.digest
    assert Voice("sample", codes=changed).digest != voice.digest
    assert Voice("sample", codes=voice.codes[:-1]).digest != voice.digest


# Voice files


def test_voice_files_of_every_float_type(tmp_path: Path) -> None:
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
        (pt(preset() | {"embeddings": torch.zeros(6, 64)}), r"expected \[1\.\.2998, 1, 1, 64\]"),
        (pt(preset() | {"embeddings": torch.zeros(())}), r"expected \[1\.\.2998, 1, 1, 64\]"),
        (pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 32)}), "made for another model"),
        (pt(preset() | {"embeddings": torch.zeros(0, 1, 1, 64)}), "made for another model"),
        (pt(preset() | {"embeddings": HUGE}), "made for another model"),
        (pt(preset() | {"embeddings": NAN}), "must be finite floats"),
        (pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 64).int()}), "must be finite floats"),
        (pt(preset() | {"embeddings": torch.zeros(6, 1, 1, 64).to_sparse()}), "holds no tensor"),
        (pt(preset() | {"cache": torch.zeros(1, 17, 3).long()}), r"expected \[1, 17, 4\]"),
        (pt(preset() | {"cache": torch.zeros(1, 17, 4)}), r"expected \[1, 17, 4\] torch.int64"),
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
def test_files_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(VoiceError, match="cannot be read: "):
        load_voice_file(tmp_path / name, "bad", CONFIG)


# The archive


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as target:
        for info, data in members:
            info.size = info.size or len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_presets_are_listed_and_parsed_when_asked_for() -> None:
    library = VoiceLibrary.from_archive(ARCHIVE, CONFIG)
    assert library.names == ["NATF2", "NATM1"]
    voice = library.get("NATM1")
    assert voice.frames == 15
    assert library.get("NATM1") is voice


def test_a_damaged_preset_spoils_only_itself(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "voices.tgz",
        (member("voices", tarfile.DIRTYPE), b""),
        (member("./voices/good.pt"), pt(preset())),
        (member("voices/bad.pt"), b"junk"),
        (member("voices/._good.pt"), b"what a Mac leaves behind"),
        (member("voices/README.md"), b"text"),
    )
    library = VoiceLibrary.from_archive(path, CONFIG)
    assert library.names == ["bad", "good"]
    assert library.get("good").frames == 7
    with pytest.raises(VoiceError, match="voice bad is cut off"):
        library.get("bad")


@pytest.mark.parametrize(
    "name", ["", "natf2", "../NATF2", "/etc/passwd", "voices/NATF2", "NATF2\0"]
)
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(VoiceNotFound, match="this checkpoint has: NATF2, NATM1"):
        VoiceLibrary.from_archive(ARCHIVE, CONFIG).get(name)


def test_added_voices_are_known_and_may_replace(tmp_path: Path) -> None:
    library = VoiceLibrary.from_archive(ARCHIVE, CONFIG)
    library.add(sample())
    assert library.names == ["NATF2", "NATM1", "sample"]
    replacement = Voice("NATF2", codes=sample().codes)
    library.add(replacement)
    assert library.get("NATF2") is replacement
    assert library.names == ["NATF2", "NATM1", "sample"]


def huge(name: str) -> tarfile.TarInfo:
    info = member(name)
    info.size = 65 << 20
    return info


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    fine = (member("voices/a.pt"), b"x")
    for hostile in (
        (member("../voices/b.pt"), b"x"),
        (member("voices/../../b.pt"), b"x"),
        (member("/etc/voices/b.pt"), b"x"),
        (member("voices/b.pt", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("voices/b.pt", tarfile.LNKTYPE, "voices/a.pt"), b""),
        (member("voices", tarfile.SYMTYPE, "/"), b""),
        (member("voices/b.pt", tarfile.CHRTYPE), b""),
        (member("voices/b.pt", tarfile.FIFOTYPE), b""),
        (member("voices/a.pt"), b"again"),
        (huge("voices/b.pt"), bytes(65 << 20)),
    ):
        path = archive(tmp_path / "voices.tgz", fine, hostile)
        with pytest.raises(VoiceError, match="holds '") as caught:
            VoiceLibrary.from_archive(path, CONFIG)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["voices.tgz"]


def test_an_archive_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voices, "_MAX_ARCHIVE_BYTES", 1 << 20)
    path = archive(tmp_path / "voices.tgz", (member("filler"), bytes(2 << 20)))
    with pytest.raises(VoiceError, match="unpacks to more than 1 MiB"):
        VoiceLibrary.from_archive(path, CONFIG)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a tar archive"),
        (b"not gzip", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"not tar" * 200), "is not a tar archive"),
        (ARCHIVE.read_bytes()[:3000], "is cut off or damaged"),
        (ARCHIVE.read_bytes()[:40] + b"\xff" * 500, "is cut off or damaged"),
    ],
)
def test_archives_that_cannot_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "voices.tgz"
    path.write_bytes(content)
    with pytest.raises(VoiceError, match=expected):
        VoiceLibrary.from_archive(path, CONFIG)


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="cannot be read: No such file"):
        VoiceLibrary.from_archive(tmp_path / "voices.tgz", CONFIG)
