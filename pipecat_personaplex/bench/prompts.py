"""A prompt from nothing, from the cache, and as a model without prefill would run it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pipecat_personaplex.bench.calls import Served, new_ring, new_runner, window_of
from pipecat_personaplex.bench.options import BenchOptions
from pipecat_personaplex.bench.timing import median_ms, synchronize
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import STREAMS
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.models.delay_pattern import prompt_columns


def measure_prompts(
    served: Served, options: BenchOptions, device: torch.device, say: Callable[[str], None]
) -> dict[str, float]:
    """Times of one prompt of random tokens.

    Args:
        served: The model.
        options: For the prompt's length, and the run of it between two steps.
        device: Where the model is.
        say: Takes lines for a person.
    """
    config, lm, window = served.config, served.lm, window_of(served)
    frames, run = options.prompt_frames, options.engine.prefill_chunk
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        0, min(config.lm.card, config.lm.text_card), (frames, STREAMS), generator=generator
    )
    prompt = Prompt(("bench", ()), prompt_columns(tokens, config), None)
    runner = new_runner(served, 1, device)

    def compute() -> Prefix:
        prefill, prefix = Prefill(lm, prompt, device, window), None
        while prefix is None:
            prefix = prefill.advance(run)
        return prefix

    prefix = compute()
    cache = PrefixCache(2 * prefix.nbytes)
    cache.put(prompt.key, prefix)

    def cold() -> None:
        runner.restore(0, compute(), SamplingParams())

    def cached() -> None:
        kept = cache.get(prompt.key)
        assert kept is not None
        runner.restore(0, kept, SamplingParams())

    cold_ms = median_ms(cold, 5, device)
    # What a running call waits for at most while another's prompt is computed.
    run_ms = median_ms(lambda: Prefill(lm, prompt, device, window).advance(run), 5, device)
    cached_ms = median_ms(cached, 20, device)
    first_token_ms = median_ms(lambda: runner.sample_first(0, prefix), 20, device)
    stepped_ms = _stepped_ms(served, prompt, device)
    figures = {
        "frames": frames,
        "cold_ms": round(cold_ms, 3),
        "run_ms": round(run_ms, 3),
        "cached_ms": round(cached_ms, 3),
        "first_token_ms": round(first_token_ms, 3),
        "stepped_ms": round(stepped_ms, 3),
        "speedup": round(stepped_ms / cold_ms, 1),
        "cached_speedup": round(cold_ms / cached_ms, 1),
    }
    say(
        f"prompt of {frames} frames: stepped {stepped_ms:,.1f} ms, in parallel {cold_ms:,.1f} ms "
        f"({figures['speedup']}x; a run of {min(run, frames)} frames {run_ms:,.1f} ms), from the "
        f"cache {cached_ms:,.2f} ms ({figures['cached_speedup']}x); then the first token "
        f"{first_token_ms:,.2f} ms"
    )
    return figures


@torch.inference_mode()
def _stepped_ms(served: Served, prompt: Prompt, device: torch.device) -> float:
    """The prompt a step a frame, as the reference replays it: both transformers, no codec."""
    lm = served.lm
    ring = new_ring(served, 1, device)
    batch = Batch.of([0], device)
    columns = prompt.columns.to(device)
    begin = time.perf_counter()
    for index in range(prompt.frames):
        place = torch.tensor([index], device=device)
        kv = ring.at(batch, [index], place)
        hidden = lm(lm.embed(columns[index])[None, None], place[:, None], kv)[:, 0]
        text = lm.text_logits(hidden).argmax(dim=-1)
        lm.depth(hidden, text, lambda codebook, logits: logits.argmax(dim=-1))
    synchronize(device)
    return (time.perf_counter() - begin) * 1e3
