"""Runs a suite: every item and seed, many calls at once, into a run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.converse_many import ConversationJob
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Item
from pipecat_personaplex.eval.run_folder import Call, RunFolder, checked_id
from pipecat_personaplex.eval.suites.suite_files import Suite
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.words import words_of

Progress = Callable[[int, int, float], object]
"""Called with (calls done, calls in all, calls a second)."""


@dataclass(frozen=True)
class Plan:
    """What a run consists of.

    Attributes:
        suite: The suite.
        data: Folder of its data; None for a suite that generates its items.
        voice: The agent's voice.
        voice_file: The recording of that voice; None for a preset.
        seeds: Seeds of the sampling; each item is run once with each.
        sampling: The other parameters of the sampling.
        limit: Items of each group, at most; 0 for all.
    """

    suite: Suite
    data: Path | None
    voice: str
    seeds: tuple[int, ...]
    sampling: SamplingParams
    limit: int = 0
    voice_file: Path | None = None

    def items(self) -> Iterator[Item]:
        """The items, one after another."""
        return self.suite.items(self.data, self.limit)


@dataclass(frozen=True)
class RunResult:
    """What a run has computed now, without what an earlier one had finished.

    Attributes:
        calls: Calls.
        failed: How many of them failed.
        seconds: Wall-clock seconds.
        audio_seconds: Seconds of the callers' audio.
        step_ms: Median duration of a step with the calls of this run in the batch.
    """

    calls: int
    failed: int
    seconds: float
    audio_seconds: float
    step_ms: float

    @property
    def calls_per_second(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Inventory:
    """What the items of a plan are, without their audio.

    Attributes:
        items: Number of items.
        sha256: Hash of ids, prompts, events and audio of all items.
        prompts: The text prompts, each once.
    """

    items: int
    sha256: str
    prompts: tuple[str, ...]


def take_inventory(plan: Plan) -> Inventory:
    """Read all items once, and check their ids.

    Raises:
        UserError: The data is missing or not valid, two items have one id, or there are none.
    """
    total = hashlib.sha256()
    ids: set[str] = set()
    prompts: dict[str, None] = {}
    for item in plan.items():
        if checked_id(item.id) in ids:
            raise UserError(f"suite {plan.suite.name} has two items with the id {item.id}")
        ids.add(item.id)
        prompts[item.prompt] = None
        parts: list[Any] = [item.id, item.group, item.prompt, [asdict(e) for e in item.events]]
        # Only where an item has them: the hash of others is that of earlier versions.
        parts += filter(None, [item.wanted and {"wanted": item.wanted}, item.reference])
        total.update(json.dumps(parts).encode())
        total.update(item.pcm.tobytes())
    if not ids:
        raise UserError(f"suite {plan.suite.name}: {plan.data} has no items")
    return Inventory(len(ids), total.hexdigest()[:16], tuple(prompts))


def describe_run(plan: Plan, inventory: Inventory, engine: Engine, model: str) -> dict[str, Any]:
    """The content of ``run.json``."""
    from pipecat_personaplex.bench.machine import describe_machine

    machine = describe_machine(engine.device)
    sampling = asdict(plan.sampling)
    del sampling["seed"]
    config = engine.config
    files = CheckpointFiles.of(resolve_folder(model, progress=False))
    return {
        "suite": plan.suite.name,
        "title": plan.suite.title,
        "items": inventory.items,
        "data_sha256": inventory.sha256,
        "prompts": list(inventory.prompts),
        "limit": plan.limit,
        "model": model,
        "checkpoint_sha256": _file_hash(files.model),
        "other_files_sha256": other_files_hash(files),
        "dtype": str(engine.checkpoint.lm.dtype).removeprefix("torch."),
        "adapter": config.adapter or None,
        "adapter_sha256": adapter_hash(config.adapter) if config.adapter else None,
        "quantization": engine.checkpoint.quantization,
        "kv_dtype": config.kv_dtype,
        "context": config.context,
        "keep_persona": config.keep_persona,
        "dc_blocker": engine.checkpoint.config.dc_blocker,
        "device": engine.device.type,
        "voice": plan.voice,
        "voice_sha256": None if plan.voice_file is None else _file_hash(plan.voice_file),
        "sampling": sampling,
        "seeds": list(plan.seeds),
        "sessions": engine.max_sessions,
        "commit": machine.pop("commit"),
        "version": machine.pop("version"),
        "machine": machine,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def other_files_hash(files: CheckpointFiles) -> str:
    """A hash of what a checkpoint has beside the language model.

    These are the codec, the tokenizer, the voices, and the adapter that its configuration names.
    """
    adapter = None if files.adapter is None else files.adapter.path
    others = (files.mimi, files.tokenizer, files.voices, adapter)
    hashes = ["" if path is None else _file_hash(path) for path in others]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def adapter_hash(adapter: str) -> str:
    """The first 16 digits of the SHA-256 of an adapter's file."""
    return _file_hash(find_adapter(adapter, progress=False).path)


def _file_hash(path: Path) -> str:
    """The first 16 digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def run_suite(
    engine: Engine, plan: Plan, run: RunFolder, items: int, progress: Progress | None = None
) -> RunResult:
    """Run every call that the folder does not have yet.

    Args:
        engine: A started engine.
        plan: What to run.
        run: Where the calls are written as they end.
        items: Number of items of the plan.
        progress: Called after each call.

    Raises:
        EngineError: The engine fails; the finished calls are in the folder.
    """
    done = {(call.id, call.seed) for call in run.calls() if not call.error}
    total = items * len(plan.seeds)
    calls = failed = 0
    audio_seconds = 0.0
    started = time.monotonic()
    try:
        for finished in engine.converse_many(_jobs(plan, done)):
            item, seed = finished.job.label
            if finished.conversation is None:
                failed += 1
                run.add(Call.of(item, seed, error=str(finished.error)), item.pcm[:0], [])
            else:
                talk = finished.conversation
                words = words_of(frame.text for frame in talk.frames)
                run.add(Call.of(item, seed, hash_tokens(talk.frames)), talk.pcm, words)
            calls += 1
            audio_seconds += len(item.pcm) / SAMPLE_RATE
            if progress is not None:
                progress(len(done) + calls, total, calls / (time.monotonic() - started))
    finally:  # also of a run that is interrupted and continues later
        seconds = time.monotonic() - started
        result = RunResult(calls, failed, seconds, audio_seconds, engine.stats().step_p50_ms)
        if calls:
            with suppress(OSError):  # a full disk: the error of the run itself says so
                _append_speed(run, engine.max_sessions, result)
    return result


def hash_tokens(frames: Iterable[SessionFrame]) -> str:
    """The first 16 digits of the SHA-256 of the agent's text tokens and codes."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.text_token.to_bytes(4, "little", signed=True))
        digest.update(frame.agent_codes.tobytes())
    return digest.hexdigest()[:16]


def _jobs(plan: Plan, done: set[tuple[str, int]]) -> Iterator[ConversationJob[tuple[Item, int]]]:
    sampling = asdict(plan.sampling)
    for item in plan.items():
        for seed in plan.seeds:
            if (item.id, seed) not in done:
                yield ConversationJob(
                    (item, seed),
                    Persona(plan.voice, item.prompt),
                    item.pcm,
                    SamplingParams(**sampling | {"seed": seed}),
                )


def _append_speed(run: RunFolder, sessions: int, result: RunResult) -> None:
    record = {
        "sessions": sessions,
        "calls": result.calls,
        "seconds": round(result.seconds, 3),
        "audio_seconds": round(result.audio_seconds, 3),
        "step_p50_ms": round(result.step_ms, 3),
    }
    with (run.path / "speed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_speed(run: RunFolder) -> list[dict[str, Any]]:
    """The records of ``speed.jsonl``, one for each time that the run was started or continued."""
    path = run.path / "speed.jsonl"
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # cut off by a full disk
            records.append(json.loads(line))
    return records
