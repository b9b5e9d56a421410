"""Voices: recordings, the archive of presets, and the library of voices by name."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipecat_personaplex.audio_files import normalize_loudness, read_audio
from pipecat_personaplex.checkpoint import voices
from pipecat_personaplex.checkpoint.voices import Voice, VoiceLibrary, encode_voice
from pipecat_personaplex.errors import (
    CheckpointError,
    InvalidAudio,
    VoiceError,
    VoiceNotFound,
)
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.checkpoints import preset, pt

CONFIG = ModelConfig(lm=LMConfig(dim=64, num_heads=4, text_card=320))
ARCHIVE = CHECKPOINT / "voices.tgz"


def sample() -> Voice:
    codes = torch.randint(0, 2048, (9, 8), generator=torch.Generator().manual_seed(1))
    return Voice("sample", codes=codes)


def test_a_recording_is_normalised_and_padded_to_whole_frames() -> None:
    pcm = read_audio(VOICE_SAMPLE)[:19_201]
    encoded: list[Tensor] = []

    def encode(samples: Tensor) -> Tensor:
        encoded.append(samples)
        return torch.zeros(len(samples) // 1920, 8, dtype=torch.int64)

    voice = encode_voice(pcm, "mine", encode)
    assert voice.frames == 11
    assert encoded[0].dtype == torch.float32
    assert len(encoded[0]) == 11 * 1920
    np.testing.assert_array_equal(encoded[0][:19_201], normalize_loudness(pcm, -24))
    assert not encoded[0][19_201:].any()


@pytest.mark.parametrize(
    ("pcm", "expected"),
    [
        (np.zeros(24_000, np.float64), "must be a float32 numpy array of one dimension"),
        (np.zeros((24_000, 2), np.float32), "must be a float32 numpy array of one dimension"),
        ([0.0] * 24_000, "not list"),
        (np.full(24_000, np.nan, np.float32), "24000 of 24000 samples are NaN or infinite"),
        (np.zeros(24_000, np.float32), "is silent"),
        (np.ones(100, np.float32), "loudness needs at least"),
        (np.zeros(2_999 * 1920 + 1, np.float32), "takes 3000 frames of 80 ms"),
    ],
)
def test_invalid_recordings(pcm: np.ndarray, expected: str) -> None:
    with pytest.raises(InvalidAudio, match=expected):
        encode_voice(pcm, "mine", lambda _: pytest.fail("must not be encoded"))


def test_digests_depend_on_the_content_and_not_on_the_name() -> None:
    voice = sample()
    assert voice.codes is not None
    changed = voice.codes.clone()
    changed[-1, -1] += 1
    assert Voice("another name", codes=voice.codes.clone()).digest == voice.digest
    assert Voice("sample", codes=changed).digest != voice.digest
    assert Voice("sample", codes=voice.codes[:-1]).digest != voice.digest


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


def test_presets_are_listed_and_parsed_on_request() -> None:
    library = VoiceLibrary.from_archive(ARCHIVE, CONFIG)
    assert library.names == ["NATF2", "NATM1"]
    voice = library.get("NATM1")
    assert voice.frames == 15
    assert library.get("NATM1") is voice


def test_a_damaged_preset_does_not_affect_others(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "voices.tgz",
        (member("voices", tarfile.DIRTYPE), b""),
        (member("./voices/good.pt"), pt(preset())),
        (member("voices/bad.pt"), b"junk"),
        (member("voices/._good.pt"), b"metadata of a Mac"),
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


def test_added_voices_are_listed_and_may_replace() -> None:
    library = VoiceLibrary.from_archive(ARCHIVE, CONFIG)
    library.add(sample())
    assert library.names == ["NATF2", "NATM1", "sample"]
    replacement = Voice("NATF2", codes=sample().codes)
    library.add(replacement)
    assert library.get("NATF2") is replacement
    assert library.names == ["NATF2", "NATM1", "sample"]


def with_header(name: str, value: str) -> bytes:
    """An archive whose member has an extended header."""
    info = member("voices/a.pt")
    info.pax_headers = {name: value}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return content.getvalue()


def huge(name: str) -> tarfile.TarInfo:
    info = member(name)
    info.size = 65 << 20
    return info


# Each says that the next header's name is long; the library reads them one within the other.
LONG_NAMES = member("x", tarfile.GNUTYPE_LONGNAME).tobuf() * 1_000


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


def test_an_archive_that_unpacks_to_too_much(
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
        (gzip.compress(b"not tar" * 200, mtime=0), "is not a tar archive"),
        (with_header("GNU.sparse.map", "x,y"), "is not a tar archive"),
        (gzip.compress(LONG_NAMES, mtime=0), "is not a tar archive"),
        (ARCHIVE.read_bytes()[:3000], "is cut off or damaged"),
        (ARCHIVE.read_bytes()[:40] + b"\xff" * 500, "is cut off or damaged"),
    ],
)
def test_archives_that_cannot_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "voices.tgz"
    path.write_bytes(content)
    with pytest.raises(VoiceError, match=expected):
        VoiceLibrary.from_archive(path, CONFIG)


def test_a_model_without_config_is_read_as_the_7b(tmp_path: Path) -> None:
    made = preset() | {"embeddings": torch.zeros(6, 1, 1, 4096)}
    archive(tmp_path / "voices.tgz", (member("voices/a.pt"), pt(made)))
    library = VoiceLibrary.of_model(str(tmp_path), progress=False)
    assert library.names == ["a"] and library.get("a").frames == 7
    (tmp_path / "voices.tgz").unlink()
    with pytest.raises(CheckpointError, match=r"has no voices\.tgz"):
        VoiceLibrary.of_model(str(tmp_path), progress=False)


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="cannot be read: No such file"):
        VoiceLibrary.from_archive(tmp_path / "voices.tgz", CONFIG)
