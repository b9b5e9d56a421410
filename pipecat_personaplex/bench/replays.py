"""Time to replace the prompt of a call, while other callers' frames go on in real time."""

from __future__ import annotations

import time

import numpy as np

from pipecat_personaplex.bench.measurements import BenchOptions, Echo, Fill
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.bench.prompts import random_prompt
from pipecat_personaplex.bench.timing import synchronize
from pipecat_personaplex.bench.workload import new_runner, noise_prefix, start_sessions, step_call
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, FRAME_SECONDS, STREAMS
from pipecat_personaplex.engine.history import History
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.replay import Replay
from pipecat_personaplex.interface import CallHistory, FrameTimings, SessionFrame

_FRAMES = (500, 1_000, 3_000)
_STEPS = 9  # of which the median is reported


def measure_replays(
    model: LoadedModel, options: BenchOptions, fill: Fill, echo: Echo
) -> dict[str, dict[str, float]]:
    """Replay calls of several lengths in the first slot; every slot has a frame every 80 ms.

    Args:
        model: The model.
        options: Give the length of the prompt, of one chunk, and the number of callers.
        fill: How far into their calls the callers are.
        echo: Prints one line of results for each length.

    Returns:
        By frames of the call: time to the swap, the part of it that computes the replay, the swap,
        the longest chunk, one step of all callers, and late frames.
    """
    callers = max(options.sessions)
    prompt_frames = min(options.prompt_frames, model.window // 2)
    runner = new_runner(model, callers)
    start_sessions(runner, callers, noise_prefix(model, fill.positions), fill)
    report = {}
    for frames in sorted({min(frames, model.window - prompt_frames) for frames in _FRAMES}):
        row = _replay(runner, model, callers, prompt_frames, frames, options.engine.prefill_chunk)
        report[str(frames)] = row
        echo(
            f"new prompt for a call of {frames} frames, {callers} callers: in effect after "
            f"{row['total_ms']:,.1f} ms, of them {row['compute_ms']:,.1f} ms for the replay (chunk "
            f"up to {row['chunk_max_ms']:,.1f} ms) and {row['swap_ms']:,.2f} ms for the swap; a "
            f"step takes {row['step_ms']:,.1f} ms; {row['late']} late of {row['stepped']} frames"
        )
    return report


def _replay(
    runner: ModelRunner,
    model: LoadedModel,
    callers: int,
    prompt_frames: int,
    frames: int,
    chunk: int,
) -> dict[str, float]:
    device = model.device
    tokens = np.random.default_rng(0).integers(
        0, min(model.config.lm.card, model.config.lm.text_card), (frames, STREAMS), dtype=np.int16
    )
    # It grows by one frame with each step.
    past = CallHistory(tokens, np.zeros(0, dtype=np.float32))
    history = History(max(frames, model.window), past)
    silence = np.zeros(FRAME_SAMPLES, dtype=np.float32)
    codes = np.zeros(CODEBOOKS, dtype=np.int64)
    grown = SessionFrame(0, silence, "", 0, codes, codes, FrameTimings(0, 0))
    step = step_call(runner, callers)

    def timed_step() -> float:
        start = time.perf_counter()
        step()
        synchronize(device)
        return (time.perf_counter() - start) * 1e3

    timed_step()  # may compile or allocate
    step_ms = float(np.median([timed_step() for _ in range(_STEPS)]))
    replay = Replay(runner, random_prompt(model, prompt_frames), None, history, frames)
    late = stepped = 0
    chunk_ms: list[float] = []
    prefix = None
    began = due = time.perf_counter()
    while prefix is None:
        if time.perf_counter() >= due:
            timed_step()
            late += callers * (time.perf_counter() > due + FRAME_SECONDS)
            stepped += callers
            due += FRAME_SECONDS
            history.add(grown, silence)
        start = time.perf_counter()
        prefix = replay.advance(chunk)
        synchronize(device)
        chunk_ms.append((time.perf_counter() - start) * 1e3)
    start = time.perf_counter()
    runner.swap(0, prefix)
    synchronize(device)
    end = time.perf_counter()
    return {
        "total_ms": round((end - began) * 1e3, 3),
        "swap_ms": round((end - start) * 1e3, 3),
        "compute_ms": round(sum(chunk_ms), 3),
        "chunk_max_ms": round(max(chunk_ms), 3),
        "step_ms": round(step_ms, 3),
        "stepped": stepped,
        "late": late,
    }
