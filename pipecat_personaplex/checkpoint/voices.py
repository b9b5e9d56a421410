"""Voices: presets of the release, voice files, and samples of one's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.audio import Pcm, normalize_loudness
from pipecat_personaplex.checkpoint.hub import resolve
from pipecat_personaplex.checkpoint.layout import CONFIG_FILE, VOICES_FILE
from pipecat_personaplex.checkpoint.loader import read_config, require_files
from pipecat_personaplex.checkpoint.voice_files import (
    MAX_VOICE_BYTES,
    make_preset,
    parse_preset,
    write_preset,
)
from pipecat_personaplex.constants import FRAME_SAMPLES, MAX_PROMPT_FRAMES
from pipecat_personaplex.errors import InvalidAudio, VoiceError, VoiceNotFound
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.lm import PersonaPlexLM

Encode = Callable[[Tensor], Tensor]
"""pcm [1920 * F] float32 -> codes [F, 8]: the codec, streaming from a fresh state."""

_MEMBER = re.compile(r"(?:\./)?voices/([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.pt")
# The release's 18 voices take some 10 MB.
_MAX_ARCHIVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Voice:
    """What an agent sounds like: either codes, or embeddings and cache.

    Attributes:
        name: What personas call it.
        codes: The codec's codes of a sample, [F, 8] int64.
        embeddings: A preset's model inputs at positions 0..N-1, [N, dim].
        cache: A preset's last token columns, [17, 4] int64; position p is column p % 4.
        digest: Of the content; equal voices have equal digests.
    """

    name: str
    codes: Tensor | None = None
    embeddings: Tensor | None = None
    cache: Tensor | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        preset = self.embeddings is not None and self.cache is not None
        assert preset != (self.codes is not None), "codes, or embeddings and cache"
        sha = hashlib.sha256()
        for part in (self.codes, self.embeddings, self.cache):
            if part is not None:
                sha.update(f"{part.dtype}{list(part.shape)}".encode())
                sha.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "digest", sha.hexdigest())

    @property
    def frames(self) -> int:
        """Prompt frames (80 ms) it takes: a sample of F frames leaves F - 1 embeddings."""
        if self.codes is not None:
            return self.codes.shape[0]
        assert self.embeddings is not None
        return self.embeddings.shape[0] + 1


def load_voice_file(path: Path, name: str, config: ModelConfig) -> Voice:
    """Read a preset from a ``.pt`` or ``.safetensors`` file; no code in it is ever run.

    Args:
        path: The file.
        name: What personas will call the voice.
        config: The model that it is for.

    Raises:
        VoiceError: The file cannot be read or is not a voice for this model.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_VOICE_BYTES + 1)
    except OSError as error:
        raise VoiceError(f"voice file {path} cannot be read: {error.strerror}") from None
    preset = parse_preset(data, path.suffix, str(path), config)
    return Voice(name, embeddings=preset.embeddings, cache=preset.cache)


def encode_voice(pcm: Pcm, name: str, encode: Encode) -> Voice:
    """Make a voice from a recording, as the reference does: at -24 LUFS, through the codec.

    Args:
        pcm: float32 mono 24 kHz, one speaker; ten seconds do well.
        name: What personas will call the voice.
        encode: The codec, streaming from a fresh state; gets whole frames, on the CPU.

    Raises:
        InvalidAudio: The recording is not finite float32 mono, too short, too long or silent.
    """
    if pcm.dtype != np.float32 or pcm.ndim != 1 or not np.isfinite(pcm).all():
        raise InvalidAudio("a voice recording must be finite float32 mono samples at 24 kHz")
    if pcm.shape[0] > MAX_PROMPT_FRAMES * FRAME_SAMPLES:
        raise InvalidAudio(
            f"the voice recording takes {-(-pcm.shape[0] // FRAME_SAMPLES)} frames of 80 ms and "
            f"the model attends to {MAX_PROMPT_FRAMES}; ten seconds do well"
        )
    samples = torch.from_numpy(normalize_loudness(pcm))
    samples = F.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
    return Voice(name, codes=encode(samples).cpu().clone())


def export_voice(codes: Tensor, lm: PersonaPlexLM, config: ModelConfig, path: Path) -> None:
    """Write a sample's codes as a preset: ``.pt``, which NVIDIA's server loads, or safetensors.

    Args:
        codes: Of a ``Voice`` made by ``encode_voice``, [F, 8] int64.
        lm: The language model.
        config: Its configuration.
        path: Where to; the suffix chooses the format.

    Raises:
        VoiceError: The suffix is neither, or the file cannot be written.
    """
    write_preset(make_preset(codes, lm, config), path)


class VoiceLibrary:
    """Voices by name. A name is looked up here and never becomes part of a path.

    Args:
        config: The model that the voices are for.
    """

    def __init__(self, config: ModelConfig):
        self._config = config
        self._packed: dict[str, bytes] = {}
        self._voices: dict[str, Voice] = {}

    @classmethod
    def of_model(cls, model: str, *, progress: bool) -> VoiceLibrary:
        """The presets of a model that need not be loaded, nor downloaded but for these.

        Args:
            model: A folder, a Hub repo id or ``nano``.
            progress: Whether to draw progress bars on stderr.

        Raises:
            CheckpointError: The model or one of these files is not there.
            VoiceError: The presets cannot be read.
        """
        files = (VOICES_FILE, CONFIG_FILE)
        folder = resolve(model, progress=progress, files=files)
        require_files(folder, files)
        return cls.from_archive(folder / VOICES_FILE, read_config(folder / CONFIG_FILE))

    @classmethod
    def from_archive(cls, path: Path, config: ModelConfig) -> VoiceLibrary:
        """Take the presets of a ``voices.tgz``, each parsed when it is first asked for.

        Nothing is unpacked to disk: members are read into memory, at most 256 MiB of them.

        Raises:
            VoiceError: The archive cannot be read, or holds what no archive of voices has:
                links, devices, absolute paths, ``..``, or more than it may.
        """
        library = cls(config)
        try:
            with gzip.open(path) as file:
                data = file.read(_MAX_ARCHIVE_BYTES + 1)
        except OSError as error:
            raise VoiceError(f"{path} cannot be read: {error.strerror or error}") from None
        except (EOFError, zlib.error) as error:
            raise VoiceError(f"{path} is cut off or damaged ({error})") from None
        if len(data) > _MAX_ARCHIVE_BYTES:
            raise VoiceError(f"{path} unpacks to more than {_MAX_ARCHIVE_BYTES >> 20} MiB")
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for member in archive:
                    library._take(archive, member, path)
        except tarfile.TarError as error:
            raise VoiceError(f"{path} is not a tar archive ({error})") from None
        return library

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        parts = PurePosixPath(member.name)
        plain = (member.isreg() or member.isdir()) and not member.issparse()
        if not plain or parts.is_absolute() or ".." in parts.parts:
            raise VoiceError(f"{path} holds {member.name!r}, which no archive of voices has")
        match = _MEMBER.fullmatch(member.name)
        if not match or not member.isreg():
            return
        if match[1] in self._packed or member.size > MAX_VOICE_BYTES:
            raise VoiceError(f"{path} holds {member.name!r} twice or larger than a voice can be")
        file = archive.extractfile(member)
        assert file is not None, "regular files have content"
        self._packed[match[1]] = file.read()

    @property
    def names(self) -> list[str]:
        """All voices, sorted."""
        return sorted(self._packed.keys() | self._voices.keys())

    def get(self, name: str) -> Voice:
        """A voice by its name.

        Raises:
            VoiceNotFound: There is none of that name.
            VoiceError: The preset is damaged or was made for another model.
        """
        voice = self._voices.get(name)
        if voice is None:
            data = self._packed.get(name)
            if data is None:
                raise VoiceNotFound(name, self.names)
            preset = parse_preset(data, ".pt", name, self._config)
            # Two threads that ask at once parse the same bytes to the same voice.
            voice = Voice(name, embeddings=preset.embeddings, cache=preset.cache)
            self._voices[name] = voice
        return voice

    def add(self, voice: Voice) -> None:
        """Add a voice, or replace the one of its name."""
        self._voices[voice.name] = voice
