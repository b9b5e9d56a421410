"""Reads a checkpoint's ``config.json``, in NVIDIA's form and in Kyutai's.

NVIDIA's form may be empty, which is the released 7B. This package adds the sections ``lm`` and
``mimi``. Kyutai's form has the language model's keys on the top level, as ``moshi`` reads them,
beside the names of the checkpoint's files. ``read_sections`` turns both into sections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipecat_personaplex.checkpoint.file_names import MIMI_FILE, MODEL_FILE, TOKENIZER_FILE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.config_checks import require_fixed, shown

_MAX_CONFIG_BYTES = 1 << 20
_MAX_RANK = 8192
_MAX_SCALING = 1e4
DEFAULT_SCALING = 2.0
"""Factor of an adapter's update if its ``config.json`` has none, as in ``moshi``."""
_MODEL_TYPES = ("personaplex", "moshi")

# A file of the checkpoint's folder, or hf://owner/name/file. No part starts with a dot, and no
# character has a meaning in a glob pattern.
_FILE_NAME = re.compile(
    r"(?!.*(\.\.|--))(hf://[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}/)?"
    r"\w[\w.-]{0,127}(/\w[\w.-]{0,127}){0,3}",
    re.ASCII,
)

# Keys of Kyutai's form for parts that this package does not have, with the values that mean that
# the checkpoint does not use them.
_ABSENT_PARTS: dict[str, tuple[Any, ...]] = {
    "conditioners": ({}, None),
    "cross_attention": (False,),
    "demux_second_stream": (False,),
    "demux_second_text_stream": (False,),
    "norm_emb": (False,),
    "bias_proj": (False,),
    "quantize": (False,),
    "kv_repeat": (1,),
    "depformer_kv_repeat": (1,),
    "depformer_norm": (None,),
    "depformer_low_rank_embeddings": (None,),
    "depformer_weights_per_step_schedule": (None,),
    "extra_heads_num_heads": (0,),
    "existing_text_end_padding_id": (0,),
    "tts_config": ({}, None),
    "stt_config": ({}, None),
}
# Keys of Kyutai's form without effect here: training, provenance, and the sampling that its
# authors suggest, which every session chooses for itself.
_WITHOUT_EFFECT = ("extra_heads_dim", "gradient_checkpointing", "lm_gen_config", "model_id")
_FILE_KEYS = ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name")
_LORA_KEYS = ("lora", "lora_rank", "lora_scaling")
# The codec's own file of a configuration, as moshi reads it.
_MIMI_FIXED = {"sample_rate": 24_000, "channels": 1, "frame_rate": 12.5}


class FileNames(NamedTuple):
    """The files that a ``config.json`` names: names in its folder, or ``hf://owner/name/file``.

    Attributes:
        model: The language model.
        mimi: The codec.
        tokenizer: The text tokenizer.
        mimi_config: The codec's architecture, a file of the folder; None: ``config.json`` has it.
        adapter: A LoRA adapter to merge; None without one.
    """

    model: str = MODEL_FILE
    mimi: str = MIMI_FILE
    tokenizer: str = TOKENIZER_FILE
    mimi_config: str | None = None
    adapter: str | None = None


class LoraSettings(NamedTuple):
    """What a ``config.json`` says of a LoRA adapter.

    Attributes:
        enabled: Whether the weights need an adapter.
        rank: Its rank; None if the file does not say.
        scaling: Factor of its update; None if the file does not say.
    """

    enabled: bool
    rank: int | None
    scaling: float | None


def read_config(path: Path) -> ModelConfig:
    """Read a ``config.json``; a missing file means the released 7B.

    Raises:
        ConfigError: The file is not readable JSON, or has an invalid key or value.
    """
    return ModelConfig.from_dict(read_sections(path))


def read_sections(path: Path) -> dict[str, Any]:
    """Read a ``config.json`` as ``ModelConfig.from_dict`` takes it, with its ``model_type``.

    Raises:
        ConfigError: The file is not readable JSON, or a key of Kyutai's form has an invalid value.
    """
    values = read_json(path)
    names = file_names(values)
    lora_settings(values)
    kind = model_type(values)
    sections = {
        key: value for key, value in values.items() if key not in (*_FILE_KEYS, *_LORA_KEYS)
    }
    if _is_flat(values):
        sections = _from_flat(sections)
    if names.mimi_config is not None:
        mimi = read_json(path.parent / names.mimi_config, missing=False)
        require_fixed("mimi", mimi, _MIMI_FIXED)
        sections["mimi"] = {key: value for key, value in mimi.items() if key not in _MIMI_FIXED}
    return {**sections, "model_type": kind}


def read_json(path: Path, *, missing: bool = True) -> dict[str, Any]:
    """Read a small JSON object.

    Args:
        path: The file.
        missing: Whether a missing file is read as an empty object.

    Raises:
        ConfigError: The file is missing or too large, or does not hold a JSON object.
    """
    if missing and not path.is_file():
        return {}
    try:
        values = json.loads(read_small(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def read_small(path: Path, most: int) -> bytes:
    """Read a file that must be small.

    Raises:
        ValueError: It has more than ``most`` bytes.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return data


def model_type(values: Mapping[str, Any]) -> str:
    """``"personaplex"`` or ``"moshi"``. Kyutai's form without the key means ``"moshi"``.

    Raises:
        ConfigError: The key has another value.
    """
    default = "moshi" if _is_flat(values) else "personaplex"
    kind = values.get("model_type", default)
    if kind not in _MODEL_TYPES:
        raise ConfigError(
            f"config.json: model_type is {shown(kind)}; implemented are: {', '.join(_MODEL_TYPES)}"
        )
    return str(kind)


def file_names(values: Mapping[str, Any]) -> FileNames:
    """The files that a parsed ``config.json`` names.

    Raises:
        ConfigError: A name is not that of a file in the folder, or of one on the Hub.
    """
    names = FileNames(
        model=_file_name(values, "moshi_name") or MODEL_FILE,
        mimi=_file_name(values, "mimi_name") or MIMI_FILE,
        tokenizer=_file_name(values, "tokenizer_name") or TOKENIZER_FILE,
        mimi_config=_file_name(values, "mimi_config_name"),
        adapter=_file_name(values, "lora_name"),
    )
    if names.mimi_config is not None and names.mimi_config.startswith("hf:"):
        raise ConfigError("config.json: mimi_config_name must be a file of the checkpoint's folder")
    return names


def lora_settings(values: Mapping[str, Any]) -> LoraSettings:
    """What a parsed ``config.json`` says of a LoRA adapter.

    Raises:
        ConfigError: A value has the wrong type or is out of its range.
    """
    enabled = values.get("lora", values.get("lora_name") is not None)
    if type(enabled) is not bool:
        raise ConfigError(f"config.json: lora must be true or false, not {shown(enabled)}")
    rank, scaling = values.get("lora_rank"), values.get("lora_scaling")
    if rank is not None and not (type(rank) is int and 0 < rank <= _MAX_RANK):
        raise ConfigError(
            f"config.json: lora_rank must be an integer from 1 to {_MAX_RANK}, not {shown(rank)}"
        )
    if scaling is not None:
        if type(scaling) not in (int, float) or not abs(scaling) <= _MAX_SCALING:
            raise ConfigError(
                f"config.json: lora_scaling must be a number of at most {_MAX_SCALING:g}, not "
                f"{shown(scaling)}"
            )
        scaling = float(scaling)
    return LoraSettings(enabled, rank, scaling)


def _file_name(values: Mapping[str, Any], key: str) -> str | None:
    name = values.get(key)
    if name is None:
        return None
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ConfigError(
            f"config.json: {key} must be the name of a file in the checkpoint's folder, or "
            f"hf://owner/name/file, not {shown(name)}"
        )
    return name


def _is_flat(values: Mapping[str, Any]) -> bool:
    """Whether the keys of the language model are on the top level."""
    return "lm" not in values and not LMConfig.keys().isdisjoint(values)


def _from_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move the language model's keys to a section, and check those that it does not have.

    Raises:
        ConfigError: The checkpoint uses a part that this package does not have.
    """
    for key, neutral in _ABSENT_PARTS.items():
        if key in values and values[key] not in neutral:
            raise ConfigError(
                f"config.json: {key} is {shown(values[key])}; only {neutral[0]!r} is implemented"
            )
    _require_no_fusion(values.get("fuser"))
    lm = {key: value for key, value in values.items() if key in LMConfig.keys()}
    card = lm.get("text_card", LMConfig.text_card)
    if values.get("text_card_out", card) not in (None, card):
        raise ConfigError(
            f"config.json: text_card_out is {shown(values['text_card_out'])}; only text_card, "
            f"{shown(card)}, is implemented"
        )
    lm |= _depth_width(lm)
    dropped = {*lm, *_ABSENT_PARTS, *_WITHOUT_EFFECT, "fuser", "text_card_out"}
    rest = {key: value for key, value in values.items() if key not in dropped}
    return {**rest, "lm": lm}


def _require_no_fusion(fuser: object) -> None:
    if fuser is None or (
        isinstance(fuser, Mapping)
        and not any(fuser.get(method) for method in ("sum", "cross", "prepend"))
    ):
        return
    raise ConfigError(
        f"config.json: fuser is {shown(fuser)}; conditions on the model are not implemented"
    )


def _depth_width(lm: Mapping[str, Any]) -> dict[str, Any]:
    """The depth transformer's MLP width, which may be one number for each step, or follow."""
    key = "depformer_dim_feedforward"
    width = lm.get(key, LMConfig.depformer_dim_feedforward)
    if isinstance(width, list) and width and all(item == width[0] for item in width):
        return {key: width[0]}
    if width is None:
        scale = lm.get("hidden_scale", LMConfig.hidden_scale)
        dim = lm.get("depformer_dim", LMConfig.depformer_dim)
        if type(scale) not in (int, float) or type(dim) is not int or not 0 < scale * dim < 1e9:
            raise ConfigError(f"config.json: {key} is null, and does not follow from hidden_scale")
        return {key: int(scale * dim)}
    return {}
