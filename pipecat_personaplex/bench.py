"""How fast a model steps here: step times by sessions, prompts cold and cached, memory.

Speed does not depend on the values of the weights, so ``--random-1b`` and ``--random-7b`` measure
what no checkpoint is at hand for, and the report says so.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.config import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    EngineConfig,
    Quantization,
    SamplingParams,
)
from pipecat_personaplex.engine.kv_cache import Batch, RingCache
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.placement import choose_kv_dtype, choose_target
from pipecat_personaplex.engine.prompting import Prefill, Prefix, PrefixCache, Prompt
from pipecat_personaplex.engine.tokens import prompt_columns
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.subject import RANDOM_MODELS, Subject, load_subject

_WARM_UP_STEPS = 5


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        sessions: Batch sizes.
        frames: Steps timed for each.
        prompt_frames: Length of the prompt, and where the timed calls start in their window.
        device: As in ``EngineConfig``.
        dtype: As in ``EngineConfig``.
        quantization: As in ``EngineConfig``.
        kv_dtype: As in ``EngineConfig``.
        context: As in ``EngineConfig``.
        threads: CPU threads; 0 leaves torch's choice.
        cuda_graphs: As in ``EngineConfig``.
        peer: Also time PyPI ``moshi`` on the same architecture, and our int8, in the same run.
    """

    model: str
    sessions: tuple[int, ...] = (1, 2, 4, 8)
    frames: int = 200
    prompt_frames: int = 300
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Quantization | None = None
    kv_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    context: int = 0
    threads: int = 0
    cuda_graphs: bool = True
    peer: bool = False

    def __post_init__(self) -> None:
        # The engine's own checks of what is passed on to it.
        EngineConfig(
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_dtype=self.kv_dtype,
            context=self.context,
        )
        if not self.sessions or min(self.sessions) < 1:
            raise ConfigError(f"sessions must be numbers of at least 1, not {self.sessions}")
        if self.frames < 1:
            raise ConfigError(f"frames must be at least 1, not {self.frames}")
        if self.prompt_frames < 2:
            raise ConfigError(f"prompt frames must be at least 2, not {self.prompt_frames}")


def run(options: BenchOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure and report.

    Args:
        options: What to measure.
        say: Takes lines for a person.

    Returns:
        The report that the command prints as its last line.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_target(options.device, options.dtype, options.quantization).device
    before = _used_bytes(device)
    subject = load_subject(options.model, options.device, options.dtype, options.quantization)
    subject = subject._replace(config=subject.config.with_context(options.context))
    config, lm, mimi = subject
    kv_dtype = choose_kv_dtype(options.kv_dtype, lm.dtype, device)
    loaded = _used_bytes(device) - before
    report: dict[str, Any] = {
        "model": options.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "quantization": options.quantization,
        "kv_dtype": str(kv_dtype).removeprefix("torch."),
        "context": config.lm.context,
        "frames": options.frames,
    }
    say(
        f"{options.model} on {report['device']}, {report['threads']} threads, torch "
        f"{report['torch']}, {report['dtype']}, quantization {options.quantization or 'none'}"
    )
    if options.model in RANDOM_MODELS:
        say("weights are random: the speed is the model's, the sound is noise")

    prefix, report["prefill"] = _measure_prefill(subject, options, device, say)
    report["sessions"] = {}
    slot_bytes = 0
    for count in options.sessions:
        runner = ModelRunner(config, lm, mimi, count, device, kv_dtype)
        if options.cuda_graphs:
            runner.capture()
        slot_bytes = runner.slot_bytes
        times = step_times(runner, count, options.frames, prefix)
        report["sessions"][str(count)] = figures = _figures(times)
        say(
            f"{count:4d} sessions   p50 {figures['p50_ms']:8.2f} ms   p99 {figures['p99_ms']:8.2f} "
            f"ms   p99.9 {figures['p999_ms']:8.2f} ms   real-time factor "
            f"{figures['real_time_factor']:.3f}"
        )
        del runner
        gc.collect()
    counts = [str(count) for count in options.sessions]
    if "1" in counts and "8" in counts:
        ratio = report["sessions"]["8"]["p50_ms"] / report["sessions"]["1"]["p50_ms"]
        report["batch_8_to_1"] = round(ratio, 2)
        say(f"a step for 8 takes {ratio:.2f}x the time of a step for 1")
    report["memory"] = {"model_bytes": loaded, "slot_bytes": slot_bytes}
    say(
        f"memory: model {loaded / 2**20:,.0f} MiB, one slot with a full window "
        f"{slot_bytes / 2**20:,.0f} MiB"
    )
    if options.peer:
        report["peer"] = _measure_peer(subject, options, device, prefix, say)
    return report


def step_times(runner: ModelRunner, sessions: int, frames: int, prefix: Prefix) -> list[float]:
    """Seconds of each of ``frames`` steps with ``sessions`` callers, sampling on."""
    start(runner, sessions, prefix)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (sessions, FRAME_SAMPLES))
    pcm = torch.from_numpy(noise.astype(np.float32))
    batch = Batch.of(list(range(sessions)), runner.device)
    return timed(lambda: runner.step(batch, pcm), frames, runner.device)


def start(runner: ModelRunner, sessions: int, prefix: Prefix) -> None:
    """Join ``sessions`` callers with the same prompt and different seeds."""
    for slot in range(sessions):
        runner.join(slot, prefix, SamplingParams(seed=slot))


def timed(call: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Seconds of each call, all its work on the device included, after a few that do not count."""
    for _ in range(_WARM_UP_STEPS):
        call()
    seconds = []
    for _ in range(times):
        _synchronize(device)
        begin = time.perf_counter()
        call()
        _synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _figures(seconds: list[float]) -> dict[str, float]:
    p50, p99, p999 = np.percentile(np.array(seconds) * 1e3, (50, 99, 99.9))
    return {
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "p999_ms": round(float(p999), 3),
        "real_time_factor": round(float(np.mean(seconds)) / FRAME_SECONDS, 4),
    }


def _median_ms(call: Callable[[], object], times: int, device: torch.device) -> float:
    return float(np.median(timed(call, times, device))) * 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_prefill(
    subject: Subject, options: BenchOptions, device: torch.device, say: Callable[[str], None]
) -> tuple[Prefix, dict[str, float]]:
    """A prompt from nothing, from the cache, and as a model without prefill would run it."""
    config, lm, mimi = subject
    frames = options.prompt_frames
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        0, min(config.lm.card, config.lm.text_card), (frames, 17), generator=generator
    )
    prompt = Prompt(("bench", ()), prompt_columns(tokens, config), None)
    kv_dtype = choose_kv_dtype(options.kv_dtype, lm.dtype, device)
    runner = ModelRunner(config, lm, mimi, 1, device, kv_dtype)

    def compute() -> Prefix:
        prefill, prefix = Prefill(lm, prompt, device, config.lm.window), None
        while prefix is None:
            prefix = prefill.advance(EngineConfig.prefill_chunk)
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

    cold_ms = _median_ms(cold, 5, device)
    cached_ms = _median_ms(cached, 20, device)
    first_token_ms = _median_ms(lambda: runner.draw_first(0, prefix), 20, device)
    stepped_ms = _stepped_prompt_ms(lm, prompt, device)
    figures = {
        "frames": frames,
        "cold_ms": round(cold_ms, 3),
        "cached_ms": round(cached_ms, 3),
        "first_token_ms": round(first_token_ms, 3),
        "stepped_ms": round(stepped_ms, 3),
        "speedup": round(stepped_ms / cold_ms, 1),
        "cached_speedup": round(cold_ms / cached_ms, 1),
    }
    say(
        f"prompt of {frames} frames: stepped {stepped_ms:,.1f} ms, in parallel {cold_ms:,.1f} ms "
        f"({figures['speedup']}x), from the cache {cached_ms:,.2f} ms "
        f"({figures['cached_speedup']}x); then the first token {first_token_ms:,.2f} ms"
    )
    return prefix, figures


@torch.inference_mode()
def _stepped_prompt_ms(lm: PersonaPlexLM, prompt: Prompt, device: torch.device) -> float:
    """The prompt a step a frame, as the reference replays it: both transformers, no codec."""
    ring = RingCache.for_lm(lm, 1, device)
    batch = Batch.of([0], device)
    columns = prompt.columns.to(device)
    begin = time.perf_counter()
    for index in range(prompt.frames):
        place = torch.tensor([index], device=device)
        kv = ring.at(batch, [index], place)
        hidden = lm(lm.embed(columns[index])[None, None], place[:, None], kv)[:, 0]
        text = lm.text_logits(hidden).argmax(dim=-1)
        lm.depth(hidden, text, lambda codebook, logits: logits.argmax(dim=-1))
    _synchronize(device)
    return (time.perf_counter() - begin) * 1e3


def _measure_peer(
    subject: Subject,
    options: BenchOptions,
    device: torch.device,
    prefix: Prefix,
    say: Callable[[str], None],
) -> dict[str, float]:
    """One session a frame, audio in to audio out: ours, ours in int8, PyPI moshi, taking turns."""
    from pipecat_personaplex.bench_peer import PeerCall

    config, lm, mimi = subject
    contenders: dict[str, Callable[[], object]] = {}
    pcm = torch.zeros(1, FRAME_SAMPLES)
    batch = Batch.of([0], device)

    def add(name: str, lm: PersonaPlexLM, mimi: Mimi) -> None:
        kv_dtype = choose_kv_dtype(options.kv_dtype, lm.dtype, device)
        runner = ModelRunner(config, lm, mimi, 1, device, kv_dtype)
        if options.cuda_graphs:
            runner.capture()
        start(runner, 1, prefix)
        contenders[name] = lambda: runner.step(batch, pcm)

    add("ours", lm, mimi)
    if device.type == "cpu" and options.quantization is None:
        int8 = load_subject(options.model, options.device, options.dtype, "int8")
        add("ours_int8", int8.lm, int8.mimi)
    contenders["moshi"] = PeerCall(config, device, lm.dtype, options.prompt_frames).step
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = 5
    for _ in range(rounds):
        for name, call in contenders.items():
            samples[name] += timed(call, max(1, options.frames // rounds), device)
    medians = {name: float(np.median(times)) * 1e3 for name, times in samples.items()}
    report = {f"{name}_p50_ms": round(ms, 3) for name, ms in medians.items()}
    for name, ms in medians.items():
        if name == "moshi":
            continue
        report[f"{name}_speedup"] = speedup = round(medians["moshi"] / ms, 2)
        say(
            f"one session a frame: {name} {ms:.2f} ms, PyPI moshi {medians['moshi']:.2f} ms: "
            f"{speedup}x as fast"
        )
    return report


def _used_bytes(device: torch.device) -> int:
    """Memory in use: of the device, or of this process (anonymous, without mapped files)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        logger.debug("no /proc here: memory is reported as 0")
        return 0
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
