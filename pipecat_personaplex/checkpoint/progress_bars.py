"""Progress bars on stderr for downloads and loading, drawn with the Hub client's library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    tqdm,
)

Progress = Callable[[int, int], None]
"""Called with (done, total) as work advances; the function that takes it names the unit."""


@contextmanager
def download_bars(shown: bool) -> Iterator[None]:
    """Let the Hub client draw its bars in the block only if ``shown``."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def loading_bar(shown: bool) -> Iterator[Progress | None]:
    """Draw a bar while the block loads a model, if ``shown``.

    Yields:
        The callback for ``load_checkpoint``; None if no bar is drawn.
    """
    if not shown:
        yield None
        return
    bar: Any = tqdm(  # type: ignore[no-untyped-call]
        desc="loading the model", unit=" weights", unit_scale=True, leave=False
    )
    with bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
