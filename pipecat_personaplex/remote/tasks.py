"""Helpers for coroutines that run and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def run_until_first_ends(*coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines concurrently until one ends, then cancel the others.

    Raises what the coroutine that ended first raised.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


async def wait_until_cancelled() -> None:
    """Never return.

    A sender awaits this when its connection has closed: the receiver of the same connection then
    ends first and raises the close code.
    """
    await asyncio.get_running_loop().create_future()
