"""Coroutines that live and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def first_to_end(*works: Coroutine[None, None, None]) -> None:
    """Run all until one ends, and end the others; raises what the first of the ended raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


async def for_ever() -> None:
    """Wait to be ended, for who cannot go on while another is about to learn why."""
    await asyncio.get_running_loop().create_future()
