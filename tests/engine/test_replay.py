"""Replay: the state of a call, computed again from its prompt and tokens, is the state it had."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch

from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import STREAMS, TEXT, TEXT_PAD
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix
from pipecat_personaplex.engine.prompt import (
    Prompt,
    build_prompt,
    extend_prompt,
    text_prompt_tokens,
)
from pipecat_personaplex.engine.replay import remembered_frames
from pipecat_personaplex.models.delay_pattern import prompt_columns
from tests.helpers.questions import question_and_pause

CPU = torch.device("cpu")
SWAPS = 4


def prompt_of(engine: Engine, persona: Persona) -> Prompt:
    checkpoint = engine.checkpoint
    tokens = text_prompt_tokens(persona.text_prompt, checkpoint.tokenizer)
    return build_prompt(engine._voices.get(persona.voice), tokens, checkpoint.config)


def prefix_of(engine: Engine, prompt: Prompt, chunk: int = 64) -> Prefix:
    checkpoint = engine.checkpoint
    prefill = Prefill(checkpoint.lm, prompt, CPU, checkpoint.config.lm.window)
    while True:
        prefix = prefill.advance(chunk)
        if prefix is not None:
            return prefix


@dataclass
class Caller:
    """A session in a slot of a runner, stepped by hand, with all of its tokens."""

    prompt: Prompt
    sampling: SamplingParams
    pcm: np.ndarray  # [frames, 1920]
    tokens: list[torch.Tensor] = field(default_factory=list)  # [17] each
    audio: list[torch.Tensor] = field(default_factory=list)

    def table(self) -> torch.Tensor:
        return torch.stack(self.tokens) if self.tokens else torch.empty(0, STREAMS).long()


def run(
    engine: Engine,
    callers: list[Caller],
    swaps: dict[int, list[int]],
    forced: dict[int, int],
    fixed: bool = False,
) -> None:
    """Step all callers together. ``swaps``: frame -> callers; ``forced``: frame -> text token."""
    checkpoint = engine.checkpoint
    runner = ModelRunner(
        checkpoint.config, checkpoint.lm, checkpoint.mimi, len(callers), CPU, fixed=fixed
    )
    for slot, caller in enumerate(callers):
        runner.join(slot, prefix_of(engine, caller.prompt), caller.sampling)
    batch = Batch.of(range(len(callers)), CPU)
    for frame in range(len(callers[0].pcm)):
        for slot in swaps.get(frame, []):
            caller = callers[slot]
            whole = extend_prompt(caller.prompt, caller.table(), checkpoint.config)
            runner.swap(slot, prefix_of(engine, whole), keep_text=frame - 1 in forced)
        pcm = torch.from_numpy(np.stack([caller.pcm[frame] for caller in callers]))
        text = torch.full((len(callers),), forced[frame]) if frame in forced else None
        output = runner.step(batch, pcm, text)
        for row, caller in enumerate(callers):
            caller.tokens.append(output.tokens()[row, :STREAMS].clone())
            caller.audio.append(output.pcm[row].clone())


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.load("nano", EngineConfig(device="cpu", dtype="float32", max_sessions=4))


def new_callers(
    engine: Engine, random: np.random.Generator, frames: int, count: int
) -> list[Caller]:
    callers = []
    for _ in range(count):
        persona = Persona(
            engine.voices[random.integers(len(engine.voices))],
            ["You are a wise and friendly teacher.", RESTAURANT][random.integers(2)],
        )
        seed = int(random.integers(1 << 40))
        sampling = SamplingParams(seed) if random.integers(2) else SamplingParams.greedy()
        pcm = np.roll(question_and_pause(frames), random.integers(frames // 2), axis=0)
        callers.append(Caller(prompt_of(engine, persona), sampling, pcm))
    return callers


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("checkpoint", ["tiny", "nano"])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_prompt_and_all_frames_give_the_same_tokens(
    request: pytest.FixtureRequest, checkpoint: str, batch: int, seed: int
) -> None:
    """16 calls in all, with four swaps each at random frames; with forced text in between."""
    engine = request.getfixturevalue("loaded_engine" if checkpoint == "tiny" else "nano")
    random = np.random.default_rng([seed, batch])
    frames = 60
    callers = new_callers(engine, random, frames, batch)
    forced = {int(frame): 40 + int(frame) for frame in random.choice(frames, 3, replace=False)}
    undisturbed = [Caller(c.prompt, c.sampling, c.pcm) for c in callers]
    run(engine, undisturbed, {}, forced)
    swaps: dict[int, list[int]] = {0: [0]}
    for slot in range(batch):
        for frame in random.choice(frames, SWAPS, replace=False):
            swaps.setdefault(int(frame), []).append(slot)
    # A swap right after a forced token: the token must stay.
    swaps.setdefault(min(min(forced) + 1, frames - 1), []).append(0)
    run(engine, callers, swaps, forced)
    for one, other in zip(undisturbed, callers, strict=True):
        assert torch.equal(one.table(), other.table())
        words = (one.table()[:, TEXT] != TEXT_PAD).sum()
        assert words > 2 * len(forced)  # the agent speaks: its silence would show nothing
        torch.testing.assert_close(
            torch.stack(one.audio), torch.stack(other.audio), atol=1e-5, rtol=0
        )


def test_a_swap_between_steps_at_fixed_addresses(loaded_engine: Engine) -> None:
    """As with CUDA graphs: the step takes nothing but its buffers from the host."""
    random = np.random.default_rng(3)
    callers = new_callers(loaded_engine, random, 40, 2)
    undisturbed = [Caller(c.prompt, c.sampling, c.pcm) for c in callers]
    run(loaded_engine, undisturbed, {}, {}, fixed=True)
    run(loaded_engine, callers, {0: [0, 1], 3: [0], 17: [1, 0], 30: [1]}, {}, fixed=True)
    for one, other in zip(undisturbed, callers, strict=True):
        assert torch.equal(one.table(), other.table())


def test_extending_a_prompt_equals_a_longer_prompt(loaded_engine: Engine) -> None:
    config = loaded_engine.checkpoint.config
    tokens = torch.randint(0, 300, (20, STREAMS), generator=torch.Generator().manual_seed(0))
    whole = prompt_columns(tokens, config)
    for cuts in ((1, 20), (7, 20), (7, 8, 8, 20), (20, 20)):
        prompt = Prompt(("key", ()), prompt_columns(tokens[: cuts[0]], config), None)
        for start, stop in pairwise(cuts):
            prompt = extend_prompt(prompt, tokens[start:stop], config)
        assert prompt.frames == 20
        assert torch.equal(prompt.columns, whole)


@pytest.mark.parametrize("grow", [1, 5, 30])
@pytest.mark.parametrize("cached", [False, True])
def test_a_growing_prefill_ends_in_the_state_of_the_whole(
    loaded_engine: Engine, grow: int, cached: bool
) -> None:
    """The tiny checkpoint's window is shorter than the prompt."""
    checkpoint = loaded_engine.checkpoint
    config = checkpoint.config
    prompt = prompt_of(loaded_engine, Persona("NATF2", "Hello."))
    call = torch.randint(0, 300, (40, STREAMS), generator=torch.Generator().manual_seed(0))
    expected = prefix_of(loaded_engine, extend_prompt(prompt, call, config))
    prefill = Prefill(
        checkpoint.lm,
        prompt,
        CPU,
        config.lm.window,
        start=prefix_of(loaded_engine, prompt) if cached else None,
        capacity=prompt.frames + len(call),
    )
    prefill.extend(call[:10], config)
    given, prefix = 10, None
    while prefix is None or prefix.length < expected.length:
        prefix = prefill.advance(9)
        prefill.extend(call[given : given + grow], config)
        given += grow
    for name in ("keys", "values", "hidden", "column"):
        torch.testing.assert_close(
            getattr(prefix, name), getattr(expected, name), atol=1e-5, rtol=1e-4
        )


def test_without_frames_a_cached_prompt_is_taken_as_it_is(loaded_engine: Engine) -> None:
    prompt = prompt_of(loaded_engine, Persona("NATF2", "Hello."))
    expected = prefix_of(loaded_engine, prompt)
    prefill = Prefill(
        loaded_engine.checkpoint.lm, prompt, CPU, expected.keys.shape[2], start=expected
    )
    prefix = prefill.advance(4)
    assert prefix is not None and torch.equal(prefix.keys, expected.keys)
    assert torch.equal(prefix.hidden, expected.hidden)


@pytest.mark.parametrize(
    ("prompt", "window", "requested", "frames"),
    [
        (300, 2999, None, 2999 - 300 - 749),
        (300, 2999, 100, 100),
        (300, 2999, 0, 0),
        (300, 2999, 10**9, 1950),
        (300, 1499, None, 1499 - 300 - 374),
        (2500, 2999, None, 374),  # a long prompt leaves an eighth of the window to the call
        (2900, 2999, None, 35),
        (2999, 2999, None, 374),
        (158, 47, None, 5),  # the golden checkpoint: the prompt is longer than the window
        (158, 47, 3, 3),
        (20, 63, None, 7),
    ],
)
def test_how_much_of_a_call_is_remembered(
    prompt: int, window: int, requested: int | None, frames: int
) -> None:
    assert remembered_frames(prompt, window, requested) == frames


@pytest.mark.parametrize("window", [47, 63, 300, 1499, 2999])
def test_a_kept_persona_leaves_a_fifth_of_the_window_to_the_call(window: int) -> None:
    for prompt in range(1, window // 2):
        assert prompt + remembered_frames(prompt, window, window // 2) <= 0.75 * window + 1
