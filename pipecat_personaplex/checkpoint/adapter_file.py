"""Finds a LoRA adapter and reads the settings beside it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipecat_personaplex.checkpoint.config_file import (
    DEFAULT_SCALING,
    LoraSettings,
    file_names,
    lora_settings,
    read_json,
)
from pipecat_personaplex.checkpoint.file_names import ADAPTER_FILE, CONFIG_FILE
from pipecat_personaplex.checkpoint.hub import is_repo_id, named_file, resolve_adapter_folder
from pipecat_personaplex.errors import CheckpointError


class AdapterFile(NamedTuple):
    """A LoRA adapter in Kyutai's layout.

    Attributes:
        path: The safetensors file.
        rank: The rank that its ``config.json`` states; None if it does not.
        scaling: Factor of the update.
    """

    path: Path
    rank: int | None
    scaling: float

    @classmethod
    def of(cls, path: Path, lora: LoraSettings) -> AdapterFile:
        """An adapter's file with the settings of its ``config.json``."""
        return cls(path, lora.rank, DEFAULT_SCALING if lora.scaling is None else lora.scaling)


def find_adapter(adapter: str, *, progress: bool) -> AdapterFile:
    """Find an adapter; one on the Hub is downloaded unless it is in the cache.

    Its rank and scaling are those of the ``config.json`` in the same folder, if there is one.

    Args:
        adapter: A safetensors file, a folder, or a Hub repo id, which may end in ``@`` and a
            branch, a tag or a commit. In a folder or repository, the adapter is the file that its
            ``config.json`` names as ``lora_name``, else ``lora.safetensors``.
        progress: Whether to draw progress bars of the download on stderr.

    Raises:
        CheckpointError: There is no such adapter.
        ConfigError: Its ``config.json`` is invalid.
    """
    path = Path(adapter)
    if path.is_file():
        folder, name = path.parent, path.name
    else:
        if path.is_dir():
            folder = path
        elif is_repo_id(adapter):
            folder = resolve_adapter_folder(adapter, progress=progress)
        else:
            raise CheckpointError(
                f"adapter {adapter!r} is neither a file nor a folder, nor a Hugging Face repo id "
                "like owner/name (or owner/name@revision)"
            )
        name = file_names(read_json(folder / CONFIG_FILE)).adapter or ADAPTER_FILE
        path = named_file(folder, name)
        if not path.is_file():
            raise CheckpointError(
                f"adapter {adapter}: there is no {name} in it; name the file, or name it as "
                f"lora_name in its {CONFIG_FILE}"
            )
    return AdapterFile.of(path, lora_settings(read_json(folder / CONFIG_FILE)))
