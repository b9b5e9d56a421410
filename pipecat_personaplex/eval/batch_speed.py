"""Calls a second, one at a time and in batches, with a comparison of their tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.converse_many import ConversationJob
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.errors import EngineError
from pipecat_personaplex.eval.items import Item
from pipecat_personaplex.eval.run_suite import hash_tokens
from pipecat_personaplex.eval.suites.nano_calls import caller_voices, generate


def measure_batches(
    load: Callable[[int], Engine],
    sessions: Sequence[int],
    per_kind: int,
    echo: Callable[[str], object],
) -> dict[int, float]:
    """Run the same calls with each number of sessions, and print calls a second and ratios.

    Args:
        load: Loads an engine with this many slots.
        sessions: Calls at once.
        per_kind: Calls of each kind of event.
        echo: Prints a line.

    Returns:
        Calls a second by number of sessions.

    Raises:
        EngineError: A call's tokens depend on the number of sessions.
    """
    items = list(generate(caller_voices(bundled=True), per_kind))
    # Longest first, so that all slots are in use until the last calls.
    items.sort(key=lambda item: -len(item.pcm))
    seconds = sum(len(item.pcm) for item in items) / SAMPLE_RATE
    rates: dict[int, float] = {}
    tokens: dict[int, str] = {}
    for count in sessions:
        with load(count) as engine:
            _run(engine, items[:count])  # warms up, and fills the prefix cache
            started, processor = time.perf_counter(), time.process_time()
            found = _run(engine, items)
            elapsed, processor = time.perf_counter() - started, time.process_time() - processor
        rates[count] = len(items) / elapsed
        echo(
            f"{count} at once: {len(items)} calls in {elapsed:.1f} s, {rates[count]:.2f} calls a "
            f"second, {seconds / elapsed:.1f} s of call a second; {processor:.1f} s of processor "
            "time"
        )
        differing = [
            index for index, digest in found.items() if tokens.get(index, digest) != digest
        ]
        if differing:
            raise EngineError(
                f"{len(differing)} of {len(items)} calls have other tokens with {count} at once"
            )
        tokens |= found
    first = sessions[0]
    for count in sessions[1:]:
        echo(f"{count} at once: {rates[count] / rates[first]:.2f} times as fast as {first}")
    echo(f"the tokens of all {len(items)} calls are the same")
    return rates


def _run(engine: Engine, items: Sequence[Item]) -> dict[int, str]:
    """Hash of all tokens of each call, by index."""
    voice = engine.voices[0]
    jobs = (
        ConversationJob(index, Persona(voice, item.prompt), item.pcm, SamplingParams(seed=index))
        for index, item in enumerate(items)
    )
    hashes: dict[int, str] = {}
    for finished in engine.converse_many(jobs):
        if finished.conversation is None:
            raise finished.error or EngineError("the call failed")
        hashes[finished.job.label] = hash_tokens(finished.conversation.frames)
    return hashes
