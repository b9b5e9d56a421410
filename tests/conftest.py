from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pipecat_personaplex import Engine, EngineConfig
from tests.golden_data import CHECKPOINT
from tests.helpers.calls import end_calls
from tests.helpers.checkpoints import WIDE, write_checkpoint
from tests.helpers.triton_interpreter import use_interpreter

use_interpreter()  # before any test imports Triton
# A busy machine may stall within an example. In CI every run has the same examples.
settings.register_profile("tests", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")
torch.set_num_threads(1)  # small models: a second one costs more than it gives
os.environ["OMP_NUM_THREADS"] = "1"  # the same for processes that tests start

# Markers of few tests: the imports of all test files take longer than some of these groups.
SMALL_GROUPS = ("browser", "measurement", "page", "realtime", "serial")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m MARKER ...``, import only the files that name this marker."""
    marker = config.option.markexpr.partition(" ")[0]
    if marker in SMALL_GROUPS and collection_path.name.startswith("test_"):
        return f"mark.{marker}" not in collection_path.read_text() or None
    return None


@pytest.fixture(autouse=True)
def calls_end_with_their_test() -> Iterator[None]:
    yield
    end_calls()


@pytest.fixture(scope="session")
def loaded_engine() -> Engine:
    """One load for the whole run; tests start and stop it through ``engine``."""
    return Engine.load(CHECKPOINT, EngineConfig(device="cpu", dtype="float32", max_sessions=4))


@pytest.fixture
def engine(loaded_engine: Engine) -> Iterator[Engine]:
    with loaded_engine:
        yield loaded_engine


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights can be packed and quantised; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", WIDE)
