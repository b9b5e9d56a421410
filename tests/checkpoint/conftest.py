"""What several tests of checkpoints share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_compiler() -> Iterator[None]:
    """Keeps ``moshi``, the test peer, from compiling its layers."""
    from moshi.utils.compile import no_compile

    with no_compile():
        yield
