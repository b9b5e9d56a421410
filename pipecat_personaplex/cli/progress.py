"""Progress bars of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a progress bar on stderr while the block runs, if stderr is a terminal.

    Yields:
        A function to call with (done, total) as the work advances.
    """
    with rate_bar(title, "") as update:
        yield lambda done, total: update(done, total, 0.0)


@contextmanager
def rate_bar(title: str, unit: str) -> Iterator[Callable[[int, int, float], None]]:
    """As ``progress_bar``, with a rate behind the title.

    Args:
        title: What is done.
        unit: Of the rate, such as ``calls a second``; empty shows no rate.

    Yields:
        A function to call with (done, total, rate).
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = sys.stderr.isatty()
    # Rich must not redirect stdout: a command's output would go to stderr.
    with Progress(
        console=console, transient=True, redirect_stdout=False, disable=not shown
    ) as bars:
        task = bars.add_task(title)

        def update(done: int, total: int, rate: float) -> None:
            text = f"{title}, {rate:.2f} {unit}" if unit else title
            bars.update(task, completed=done, total=total, description=text)

        yield update
