"""Time to prefill a prompt: in parallel, from the prefix cache, and one frame per step."""

from __future__ import annotations

import time

import torch

from pipecat_personaplex.bench.measurements import BenchOptions, Echo
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.bench.timing import median_ms, synchronize
from pipecat_personaplex.bench.workload import new_ring, new_runner
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import STREAMS
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.models.delay_pattern import prompt_columns


def measure_prompts(model: LoadedModel, options: BenchOptions, echo: Echo) -> dict[str, float]:
    """Time one prompt of random tokens.

    Stepping it frame by frame is stopped after ``options.max_seconds``; its time is then
    extrapolated from the frames that were stepped.

    Args:
        model: The model.
        options: Give the length of the prompt and of one prefill chunk, and the longest time.
        echo: Prints one line of results.
    """
    lm, device, window = model.lm, model.device, model.window
    frames, chunk = options.prompt_frames, options.engine.prefill_chunk
    prompt = random_prompt(model, frames)
    runner = new_runner(model, 1)

    def compute() -> Prefix:
        prefill, prefix = Prefill(lm, prompt, device, window), None
        while prefix is None:
            prefix = prefill.advance(chunk)
        return prefix

    prefix = compute()
    cache = PrefixCache(2 * prefix.nbytes)
    cache.put(prompt.key, prefix)

    def restore_computed() -> None:
        runner.restore(0, compute(), SamplingParams())

    def restore_cached() -> None:
        cached = cache.get(prompt.key)
        assert cached is not None
        runner.restore(0, cached, SamplingParams())

    cold_ms = median_ms(restore_computed, 5, device)
    # Running sessions wait at most this long while the prompt of another is computed.
    chunk_ms = median_ms(lambda: Prefill(lm, prompt, device, window).advance(chunk), 5, device)
    cached_ms = median_ms(restore_cached, 20, device)
    first_token_ms = median_ms(lambda: runner.sample_first(0, prefix), 20, device)
    seconds, stepped = _step(model, prompt, options.max_seconds)
    stepped_ms = seconds * 1e3 * frames / stepped
    report = {
        "frames": frames,
        "cold_ms": round(cold_ms, 3),
        "run_ms": round(chunk_ms, 3),
        "cached_ms": round(cached_ms, 3),
        "first_token_ms": round(first_token_ms, 3),
        "stepped_ms": round(stepped_ms, 3),
        "stepped_frames": stepped,
        "speedup": round(stepped_ms / cold_ms, 1),
        "cached_speedup": round(cold_ms / cached_ms, 1),
    }
    note = "" if stepped == frames else f" (from the first {stepped} frames)"
    echo(
        f"prompt of {frames} frames: stepped {stepped_ms:,.1f} ms{note}, in parallel "
        f"{cold_ms:,.1f} ms ({report['speedup']}x; a chunk of {min(chunk, frames)} frames "
        f"{chunk_ms:,.1f} ms), from the cache {cached_ms:,.2f} ms "
        f"({report['cached_speedup']}x); then the first token {first_token_ms:,.2f} ms"
    )
    return report


def random_prompt(model: LoadedModel, frames: int) -> Prompt:
    """Return a prompt of random tokens."""
    config = model.config
    tokens = torch.randint(
        0,
        min(config.lm.card, config.lm.text_card),
        (frames, STREAMS),
        generator=torch.Generator().manual_seed(0),
    )
    return Prompt(("bench", ()), prompt_columns(tokens, config), None)


@torch.inference_mode()
def _step(model: LoadedModel, prompt: Prompt, max_seconds: float) -> tuple[float, int]:
    """Time the prompt at one frame per step, as NVIDIA's reference runs it.

    Both transformers run; the codec does not.

    Returns:
        Seconds, and the number of frames that were stepped before ``max_seconds`` were over.
    """
    lm, device = model.lm, model.device
    ring = new_ring(model, 1)
    batch = Batch.of([0], device)
    columns = prompt.columns.to(device)  # [frames, 17]
    begin, index = time.perf_counter(), 0
    while index < prompt.frames and time.perf_counter() - begin < max_seconds:
        position = torch.tensor([index], device=device)  # [1]
        kv = ring.at(batch, [index], position)
        hidden = lm(lm.embed(columns[index])[None, None], position[:, None], kv)[:, 0]  # [1, dim]
        text = lm.text_logits(hidden).argmax(dim=-1)
        lm.depth(hidden, text, lambda codebook, logits: logits.argmax(dim=-1))
        index += 1
    synchronize(device)
    return time.perf_counter() - begin, index
