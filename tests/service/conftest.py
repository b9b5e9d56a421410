from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger

from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import ManualClock


@pytest.fixture(autouse=True)
def nothing_deprecated(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    # Pipecat overrides the warning filters for its own deprecations, so they do not raise. Other
    # warnings may be of objects that another test has left to the garbage collector.
    yield
    deprecations = (DeprecationWarning, PendingDeprecationWarning)
    assert not [str(each.message) for each in recwarn if issubclass(each.category, deprecations)]


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    messages: list[str] = []
    sink = logger.add(
        messages.append, format="{message}", filter=lambda record: record["level"].no == 30
    )
    yield messages
    logger.remove(sink)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
