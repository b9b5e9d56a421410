"""Voices: the checkpoint's presets, voice files, and recordings of a speaker."""

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

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.audio import Pcm, require_pcm
from pipecat_personaplex.audio_files import normalize_loudness
from pipecat_personaplex.checkpoint.checkpoint_files import require_voices
from pipecat_personaplex.checkpoint.config_file import read_config
from pipecat_personaplex.checkpoint.file_names import CONFIG_FILE, VOICES_FILE
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.checkpoint.voice_files import (
    MAX_VOICE_BYTES,
    make_preset,
    parse_preset,
    write_preset,
)
from pipecat_personaplex.constants import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    MAX_PROMPT_FRAMES,
    SILENCE_FRAMES,
)
from pipecat_personaplex.errors import InvalidAudio, VoiceError, VoiceNotFound
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.lm import PersonaPlexLM

Encode = Callable[[Tensor], Tensor]
"""The codec, streaming from a fresh state: pcm [1920 * F] float32 -> codes [F, 8]."""

MOSHI_VOICE = "moshi"
"""Name of the one voice of a checkpoint without voices."""
_MAX_RECORDING_FRAMES = MAX_PROMPT_FRAMES - 2 * SILENCE_FRAMES
MAX_RECORDING_SECONDS = _MAX_RECORDING_FRAMES * FRAME_SECONDS
"""Longest recording of a voice: with its silences it is the longest prompt."""
_MEMBER = re.compile(r"(?:\./)?voices/([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.pt")
# The release's 18 voices take about 10 MB.
_MAX_ARCHIVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Voice:
    """How an agent sounds: either the codes of a recording, or a preset's embeddings and cache.

    Attributes:
        name: The name by which personas refer to the voice.
        codes: The codec's codes of a recording, [F, 8] int64; None for a preset.
        embeddings: A preset's input embeddings at positions 0..N-1, [N, dim]; else None.
        cache: A preset's last token columns, [17, 4] int64, position p in column p % 4; else None.
        promptless: Whether the voice is that of a model without personas: its one frame, which
            the first position of a call replaces, is the whole prompt.
        digest: SHA-256 of the content: equal voices have equal digests.
    """

    name: str
    codes: Tensor | None = None
    embeddings: Tensor | None = None
    cache: Tensor | None = None
    promptless: bool = False
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
        """Prompt frames (80 ms) of the voice. A recording of F frames has F - 1 embeddings."""
        if self.codes is not None:
            return self.codes.shape[0]
        assert self.embeddings is not None
        return self.embeddings.shape[0] + 1


def load_voice_file(path: Path, name: str, config: ModelConfig) -> Voice:
    """Read a preset from a ``.pt`` or ``.safetensors`` file. No code in it is executed.

    Args:
        path: The file.
        name: Name of the voice.
        config: Configuration of the model that the voice is for.

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
    """Make a voice from a recording as the reference does: normalised to -24 LUFS and encoded.

    Args:
        pcm: One speaker, float32 mono 24 kHz. About ten seconds are a good length.
        name: Name of the voice.
        encode: The codec, streaming from a fresh state. It receives whole frames, on the CPU.

    Raises:
        InvalidAudio: The recording is not finite float32 mono, too short, too long or silent.
    """
    require_pcm(pcm)
    if pcm.shape[0] > _MAX_RECORDING_FRAMES * FRAME_SAMPLES:
        raise InvalidAudio(
            f"the voice recording takes {-(-pcm.shape[0] // FRAME_SAMPLES)} frames of 80 ms and "
            f"at most {_MAX_RECORDING_FRAMES} are accepted; use about ten seconds"
        )
    samples = torch.from_numpy(normalize_loudness(pcm))
    samples = F.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
    return Voice(name, codes=encode(samples).cpu().clone())


def export_voice(codes: Tensor, lm: PersonaPlexLM, config: ModelConfig, path: Path) -> None:
    """Write a recording's voice as a preset: ``.pt``, which NVIDIA's server loads, or safetensors.

    Args:
        codes: Codes of a ``Voice`` made by ``encode_voice``, [F, 8] int64.
        lm: The language model that the preset is for.
        config: Its configuration.
        path: The file to write; its suffix chooses the format.

    Raises:
        VoiceError: The path has another suffix, or the file cannot be written.
    """
    write_preset(make_preset(codes, lm, config), path)


class VoiceLibrary:
    """Voices by name. Names are only looked up here; they never become part of a path.

    Example::

        library = VoiceLibrary.of_model("nvidia/personaplex-7b-v1", progress=True)
        print(library.names)

    Args:
        config: Configuration of the model that the voices are for.
    """

    def __init__(self, config: ModelConfig):
        self._config = config
        self._presets: dict[str, bytes] = {}  # as in the archive, not parsed yet
        self._voices: dict[str, Voice] = {}

    @classmethod
    def of_model(cls, model: str, *, progress: bool) -> VoiceLibrary:
        """Read the presets of a model without its weights.

        Of a Hub repository, only the voices and ``config.json`` are downloaded. Without
        ``config.json`` the model is read as the 7B.

        Args:
            model: A folder, a Hub repo id or ``nano``.
            progress: Whether to draw progress bars of the download on stderr.

        Raises:
            CheckpointError: The model is not found, or has no voices.
            ConfigError: ``config.json`` is not valid.
            VoiceError: The presets cannot be read.
        """
        files = (VOICES_FILE, CONFIG_FILE)
        folder = resolve_folder(model, progress=progress, files=files)
        return cls.of_folder(folder, read_config(folder / CONFIG_FILE))

    @classmethod
    def of_folder(cls, folder: Path, config: ModelConfig) -> VoiceLibrary:
        """Read the presets of a checkpoint's folder.

        Moshi has none, and takes no persona: its library has the one voice ``MOSHI_VOICE``, whose
        prompt is empty.

        Raises:
            CheckpointError: The folder has no archive of voices, and is not Moshi.
            VoiceError: The archive cannot be read; see ``from_archive``.
        """
        require_voices(folder)
        if (folder / VOICES_FILE).is_file():
            return cls.from_archive(folder / VOICES_FILE, config)
        library = cls(config)
        codes = torch.tensor([config.silence_codes])  # [1, 8]
        library.add(Voice(MOSHI_VOICE, codes=codes, promptless=True))
        return library

    @classmethod
    def from_archive(cls, path: Path, config: ModelConfig) -> VoiceLibrary:
        """Read the presets of a ``voices.tgz``. Each is parsed when it is first requested.

        Nothing is unpacked to disk: the archive is read into memory, at most 256 MiB.

        Raises:
            VoiceError: The archive cannot be read or is too large, or has a member that does not
                belong in it: a link, a device, an absolute path or ``..``.
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
                    library._add_member(archive, member, path)
        # A header has an invalid number or one beyond all sizes, or hundreds of headers are nested.
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise VoiceError(f"{path} is not a tar archive ({error})") from None
        return library

    def _add_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        parts = PurePosixPath(member.name)
        plain = (member.isreg() or member.isdir()) and not member.issparse()
        if not plain or parts.is_absolute() or ".." in parts.parts:
            raise VoiceError(
                f"{path} holds {member.name!r}; an archive of voices has only plain files and "
                "folders, with relative paths"
            )
        match = _MEMBER.fullmatch(member.name)
        if not match or not member.isreg():
            return
        if match[1] in self._presets or member.size > MAX_VOICE_BYTES:
            raise VoiceError(f"{path} holds {member.name!r} twice or larger than a voice can be")
        file = archive.extractfile(member)
        assert file is not None, "regular files have content"
        self._presets[match[1]] = file.read()

    @property
    def names(self) -> list[str]:
        """Names of all voices, sorted."""
        return sorted(self._presets.keys() | self._voices.keys())

    def get(self, name: str) -> Voice:
        """The voice of this name.

        Raises:
            VoiceNotFound: There is no voice of this name.
            VoiceError: The preset is damaged or was made for another model.
        """
        voice = self._voices.get(name)
        if voice is None:
            data = self._presets.get(name)
            if data is None:
                raise VoiceNotFound(name, self.names)
            preset = parse_preset(data, ".pt", name, self._config)
            voice = Voice(name, embeddings=preset.embeddings, cache=preset.cache)
            # One that ``add`` has stored meanwhile stays.
            voice = self._voices.setdefault(name, voice)
        return voice

    def add(self, voice: Voice) -> None:
        """Add a voice; it replaces an existing voice of the same name."""
        self._voices[voice.name] = voice
