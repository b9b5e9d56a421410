"""Voice files: parses, checks and writes preset voices.

A preset is ``{"embeddings": [N, 1, 1, dim], "cache": [1, 17, 4]}``: the language model's input
embeddings at positions 0..N-1, and the last four columns of the token grid, position p in column
p % 4. NVIDIA's server reads and writes it as ``.pt``; this package also as ``.safetensors``.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    DELAYS,
    MAX_PROMPT_FRAMES,
    STREAMS,
    TEXT,
    TEXT_PAD,
    USER_CODES,
    ZERO_TOKEN,
)
from pipecat_personaplex.errors import VoiceError
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import prompt_columns
from pipecat_personaplex.models.lm import PersonaPlexLM

CACHE_COLUMNS = 4
MAX_VOICE_BYTES = 64 << 20
"""Largest voice file. A voice that fills the 7B's window takes 49 MB in float32."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_FORMAT = 'a voice is {"embeddings": [N, 1, 1, dim], "cache": [1, 17, 4]}'


class Preset(NamedTuple):
    """The two tensors of a preset: [N, dim] float and [17, 4] int64."""

    embeddings: Tensor
    cache: Tensor


def parse_preset(data: bytes, suffix: str, label: str, config: ModelConfig) -> Preset:
    """Parse and check the content of a voice file. No code in it is executed.

    Args:
        data: The content.
        suffix: ``".pt"`` or ``".safetensors"``.
        label: The voice's name or path, for error messages.
        config: Configuration of the model that the voice is for.

    Raises:
        VoiceError: The content is not a voice for this model.
    """
    parse = {".pt": _parse_pt, ".safetensors": _parse_safetensors}.get(suffix.lower())
    if parse is None:
        raise VoiceError(f"voice {label} must be a .pt or .safetensors file, not {suffix!r}")
    if len(data) > MAX_VOICE_BYTES:
        raise VoiceError(f"voice {label} is larger than {MAX_VOICE_BYTES >> 20} MiB")
    return _check(parse(data, label), label, config)


def _parse_pt(data: bytes, label: str) -> Any:
    # torch.load inflates compressed members: check the unpacked size first.
    if zipfile.is_zipfile(io.BytesIO(data)):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as members:
                total = sum(member.file_size for member in members.infolist())
        # ValueError: the name of a member is not UTF-8.
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise VoiceError(f"voice {label} is not a readable .pt file: {error}") from None
        if total > MAX_VOICE_BYTES:
            raise VoiceError(f"voice {label} unpacks to more than {MAX_VOICE_BYTES >> 20} MiB")
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        # A damaged or hostile pickle can raise anything. torch's own message advises to load with
        # weights_only=False, so it is not shown.
        raise VoiceError(
            f"voice {label} is cut off, not a .pt file, or holds something other than tensors "
            f"({type(error).__name__}); {_FORMAT}"
        ) from None


def _parse_safetensors(data: bytes, label: str) -> Any:
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # also of numbers that torch cannot represent
        raise VoiceError(f"voice {label} is not a safetensors file: {error}") from None


def _check(content: Any, label: str, config: ModelConfig) -> Preset:
    tensors = []
    for key in Preset._fields:
        tensor = content.get(key) if isinstance(content, dict) else None
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout is not torch.strided
            or tensor.device.type == "meta"
        ):
            raise VoiceError(f"voice {label} holds no tensor {key!r}; {_FORMAT}")
        tensors.append(tensor)
    embeddings, cache = tensors
    length, dim = embeddings.shape[0] if embeddings.ndim else 0, config.lm.dim
    if embeddings.shape != (length, 1, 1, dim) or not 0 < length < MAX_PROMPT_FRAMES:
        raise VoiceError(
            f"voice {label}: embeddings are {list(embeddings.shape)}, expected "
            f"[1..{MAX_PROMPT_FRAMES - 1}, 1, 1, {dim}]; the voice was made for another model"
        )
    if embeddings.dtype not in _FLOATS or not embeddings.isfinite().all():
        raise VoiceError(f"voice {label}: embeddings must be finite floats")
    if cache.shape != (1, STREAMS, CACHE_COLUMNS) or cache.dtype != torch.int64:
        raise VoiceError(
            f"voice {label}: cache is {list(cache.shape)} {cache.dtype}, expected "
            f"[1, {STREAMS}, {CACHE_COLUMNS}] torch.int64"
        )
    highest = torch.full((STREAMS, 1), config.lm.card)
    highest[TEXT] = config.lm.text_card
    if (cache[0] < ZERO_TOKEN).any() or (cache[0] > highest).any():
        raise VoiceError(
            f"voice {label}: cache holds tokens outside {ZERO_TOKEN}..{config.lm.text_card} "
            f"(text) and {ZERO_TOKEN}..{config.lm.card} (audio)"
        )
    # Copies: views would keep the storage of the whole file in memory.
    return Preset(embeddings.detach()[:, 0, 0].clone(), cache[0].clone())


@torch.inference_mode()
def make_preset(codes: Tensor, lm: PersonaPlexLM, config: ModelConfig) -> Preset:
    """Compute the preset of a voice from its codes.

    Args:
        codes: Codes of the recording, [F, 8] int64, F at least 2.
        lm: The language model that the preset is for.
        config: Its configuration.

    Returns:
        The embeddings of positions 0..F-2, [F - 1, dim], and the token cache [17, 4] that the
        reference implementation has after F steps.
    """
    frames = torch.empty(len(codes), STREAMS, dtype=torch.int64)
    frames[:, TEXT] = TEXT_PAD
    frames[:, AGENT_CODES] = codes
    frames[:, USER_CODES] = torch.tensor(config.sine_codes)
    columns = prompt_columns(frames, config)
    device = lm.text_emb.weight.device
    last = len(codes) - 1
    embeddings = lm.embed(columns[:last].to(device)).cpu()
    # Position p is stored in column p % 4. The last frame completes position ``last``. Of position
    # ``last + 1`` it gives the delayed streams only: the column's other streams stay as they are.
    cache = torch.full((STREAMS, CACHE_COLUMNS), ZERO_TOKEN)
    for position in range(max(0, last - CACHE_COLUMNS + 1), last + 1):
        cache[:, position % CACHE_COLUMNS] = columns[position]
    delayed = torch.tensor(DELAYS, dtype=torch.bool)
    cache[delayed, (last + 1) % CACHE_COLUMNS] = columns[last + 1, delayed]
    return Preset(embeddings.clone(), cache)


def write_preset(preset: Preset, path: Path) -> None:
    """Write a preset as ``.pt``, which NVIDIA's server also loads, or as ``.safetensors``.

    Raises:
        VoiceError: The path has another suffix, or the file cannot be written.
    """
    content = {
        "embeddings": preset.embeddings[:, None, None].contiguous(),
        "cache": preset.cache[None].contiguous(),
    }
    suffix = path.suffix.lower()
    if suffix == ".pt":
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
    elif suffix == ".safetensors":
        data = safetensors.torch.save(content)
    else:
        raise VoiceError(f"a voice file ends in .pt or .safetensors, not {path.suffix!r}")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise VoiceError(f"voice file {path} cannot be written: {error.strerror}") from None
