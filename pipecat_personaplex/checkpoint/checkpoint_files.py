"""Finds the files of a checkpoint's folder, which its ``config.json`` may name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipecat_personaplex.checkpoint.adapter_file import AdapterFile
from pipecat_personaplex.checkpoint.config_file import (
    file_names,
    lora_settings,
    model_type,
    read_json,
)
from pipecat_personaplex.checkpoint.file_names import CONFIG_FILE, VOICES_FILE
from pipecat_personaplex.checkpoint.hub import is_hub_file, named_file
from pipecat_personaplex.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint. All of them exist, ``config`` may not.

    Attributes:
        folder: The checkpoint's folder.
        config: Its ``config.json``.
        model: The language model.
        mimi: The codec.
        tokenizer: The text tokenizer.
        voices: The archive of voices; None if the folder has none.
        adapter: The LoRA adapter that ``config.json`` names; None if it names none.
        lora: Whether ``config.json`` says that the weights need an adapter.
    """

    folder: Path
    config: Path
    model: Path
    mimi: Path
    tokenizer: Path
    voices: Path | None
    adapter: AdapterFile | None
    lora: bool

    @classmethod
    def of(cls, folder: Path) -> CheckpointFiles:
        """Find the files of a folder; those that it names on the Hub are downloaded.

        Raises:
            CheckpointError: A file is missing.
            ConfigError: ``config.json`` is not readable, or a name in it is not a file's.
        """
        config = folder / CONFIG_FILE
        values = read_json(config)
        names, lora = file_names(values), lora_settings(values)
        wanted = [names.model, names.mimi, names.tokenizer]
        if lora.enabled and names.adapter is not None:
            wanted.append(names.adapter)
        elif names.adapter is not None:
            raise ConfigError(
                f"{config} names the adapter {names.adapter} and says that lora is false; remove "
                "one of the two"
            )
        # Every missing file of the folder is in one message, before anything is downloaded.
        require_files(folder, [name for name in wanted if not is_hub_file(name)])
        model, mimi, tokenizer, *adapter = [named_file(folder, name) for name in wanted]
        voices = folder / VOICES_FILE
        return cls(
            folder=folder,
            config=config,
            model=model,
            mimi=mimi,
            tokenizer=tokenizer,
            voices=voices if voices.is_file() else None,
            adapter=AdapterFile.of(adapter[0], lora) if adapter else None,
            lora=lora.enabled,
        )

    def required_adapter(self) -> AdapterFile | None:
        """The adapter to merge if no other is requested.

        Raises:
            ConfigError: The weights need one, and ``config.json`` names none.
        """
        if self.lora and self.adapter is None:
            raise ConfigError(
                f"{self.config} says that the weights need a LoRA adapter, and names none; request "
                "one with adapter (--adapter), or name it as lora_name"
            )
        return self.adapter


def require_files(folder: Path, names: list[str]) -> None:
    """Check that a folder has these files.

    Raises:
        CheckpointError: At least one is missing; the message names all that are.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)}; a PersonaPlex checkpoint is a folder with the "
            "release's files"
        )


def require_voices(folder: Path) -> None:
    """Check that a folder has an archive of voices, unless it is Moshi, which has none.

    Raises:
        CheckpointError: It has no such archive.
    """
    if (folder / VOICES_FILE).is_file() or is_moshi(folder):
        return
    require_files(folder, [VOICES_FILE])


def is_moshi(folder: Path) -> bool:
    """Whether a folder holds Moshi: a checkpoint of that type without voices.

    Raises:
        ConfigError: ``config.json`` is not readable.
    """
    config = folder / CONFIG_FILE
    return not (folder / VOICES_FILE).is_file() and model_type(read_json(config)) == "moshi"
