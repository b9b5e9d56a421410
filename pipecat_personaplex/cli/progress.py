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
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = sys.stderr.isatty()
    # Rich must not redirect stdout: a command's output would go to stderr.
    with Progress(
        console=console, transient=True, redirect_stdout=False, disable=not shown
    ) as bars:
        task = bars.add_task(title)
        yield lambda done, total: bars.update(task, completed=done, total=total)
