"""Measures what a session's ``say``, ``hush`` and ``hold`` do with nano and spoken callers.

Run ``python -m training.nano.steering``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Protocol, TypeVar

import numpy as np
import typer

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.engine import Engine
from training.nano import script
from training.nano.steering_scenes import forced, held, interrupted, released, talked_over

_CONCURRENT_CALLS = 4
T = TypeVar("T")


class Runner(Protocol):
    """Runs a scene once for each of ``count`` seeds; the results in their order."""

    def __call__(self, run: Callable[[Engine, int], T], count: int) -> list[T]:
        """Run a scene ``count`` times."""
        ...


def speech_of_a_silent_call(each: Runner) -> dict[str, object]:
    """S1: how clearly and how soon a known sentence is heard, and what the agent adds."""
    stoi, delays, behind = zip(*each(forced, 24), strict=True)
    return {
        "calls": len(stoi),
        "stoi_median": float(np.median(stoi)),
        "delay_p50_s": float(np.median(delays)),
        "delay_p95_s": float(np.percentile(delays, 95)),
        "calls_with_words_behind": sum(count > 0 for count in behind),
    }


def speech_under_a_talking_caller(each: Runner) -> dict[str, object]:
    """S2: whether the words of a text are heard and counted right, and what the agent adds."""
    calls = each(talked_over, 24)
    placed = sum(call.placed for call in calls)
    behind = [call.behind for call in calls if call.behind not in ("", script.BACKCHANNEL)]
    return {
        "words": sum(call.words for call in calls),
        "placed": placed,
        "sound": sum(call.heard for call in calls) / placed,
        "repeated": sum(call.repeated for call in calls),
        "counted": sum(call.counted for call in calls),
        "calls_with_words_behind": len(behind),
        "words_behind": behind,
        "listened": sum(call.behind == script.BACKCHANNEL for call in calls),
    }


def interruptions(each: Runner) -> dict[str, object]:
    """S3: a caller asks something while the agent speaks, and its words are cut."""
    cuts = each(interrupted, 16)
    return {
        "calls": len(cuts),
        "quiet_after_hush_s": sorted(round(cut.quiet_after_hush, 2) for cut in cuts),
        "quiet_after_caller_s": sorted(round(cut.quiet_after_caller, 2) for cut in cuts),
        "answered": sum(cut.answered for cut in cuts),
        "spoken_exact": sum(cut.spoken == cut.heard for cut in cuts),
        "spoken_and_heard": [(cut.spoken, cut.heard) for cut in cuts],
    }


def holds(each: Runner) -> dict[str, object]:
    """H1: silence during a hold, and what the agent says after it."""
    results = each(held, 80)
    right = each(released, 16)
    return {
        "holds": len(results),
        "audible_hops": sum(hops for hops, _ in results),
        "said_after": sum(said for _, said in results),
        "releases": len(right),
        "right_after_release": sum(right),
    }


MEASUREMENTS: dict[str, Callable[[Runner], dict[str, object]]] = {
    "s1": speech_of_a_silent_call,
    "s2": speech_under_a_talking_caller,
    "s3": interruptions,
    "h1": holds,
}


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="s1, s2, s3 or h1; all of them if not given.")
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the scenes to run.", min=0.0)] = 1.0,
    first_seed: Annotated[int, typer.Option(help="Seed of the first scene.", min=0)] = 0,
) -> None:
    """Measure say, hush and hold with nano; prints a line of JSON for each measurement."""
    config = EngineConfig(device="cpu", max_sessions=_CONCURRENT_CALLS)
    with (
        Engine.load("nano", config) as engine,
        ThreadPoolExecutor(_CONCURRENT_CALLS) as pool,
    ):

        def each(run: Callable[[Engine, int], T], count: int) -> list[T]:
            seeds = range(first_seed, first_seed + max(1, round(count * share)))
            return list(pool.map(partial(run, engine), seeds))

        for name in only or MEASUREMENTS:
            print(json.dumps({name: MEASUREMENTS[name](each)}), flush=True)


if __name__ == "__main__":
    typer.run(main)
