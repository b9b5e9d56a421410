from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.talk.local_engine import LocalEngine


@pytest.fixture(scope="package")
def local() -> Iterator[LocalEngine]:
    """Nano, with one slot."""
    loaded = LocalEngine("nano", EngineConfig(device="cpu", max_sessions=1))
    with loaded.engine:
        yield loaded
