"""A session's output depends on its own persona, seed and input only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams, Session, SessionFrame
from pipecat_personaplex.checkpoint.loader import load_checkpoint
from pipecat_personaplex.checkpoint.voices import VoiceLibrary
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, PromptKVCache
from pipecat_personaplex.engine.prompt import Prompt, build_prompt, text_prompt_tokens
from tests.golden_data import CHECKPOINT, FRIEND, RESTAURANT, VOICE_SAMPLE, conversation
from tests.helpers.calls import tracked

CPU = torch.device("cpu")


@dataclass
class Caller:
    """Pushes one input frame for each output frame; a test can wait for the output."""

    persona: Persona
    sampling: SamplingParams
    pcm: npt.NDArray[np.float32]
    frames: list[SessionFrame] = field(default_factory=list)
    session: Session | None = None

    def open(self, engine: Engine) -> None:
        self._arrived = threading.Semaphore(0)
        opened = engine.open_session(self.persona, self.sampling, on_frame=self._take)
        self.session = tracked(opened)

    def _take(self, frame: SessionFrame) -> None:
        self.frames.append(frame)
        self._arrived.release()

    def push(self) -> None:
        assert self.session is not None
        start = len(self.frames) * FRAME_SAMPLES
        self.session.push(self.pcm[start : start + FRAME_SAMPLES])

    def wait(self) -> None:
        assert self._arrived.acquire(timeout=30)

    def tokens(self) -> npt.NDArray[np.int64]:
        return np.array([[f.text_token, *f.agent_codes, *f.user_codes] for f in self.frames])


def callers(engine: Engine) -> list[Caller]:
    restaurant, friend = conversation("restaurant"), conversation("friend")
    female, male = engine.voices[0], engine.voices[-1]
    return [
        Caller(
            replace(RESTAURANT, voice=female),
            SamplingParams(seed=11),
            restaurant.user_pcm[: 20 * FRAME_SAMPLES],
        ),
        Caller(
            replace(FRIEND, voice=male),
            SamplingParams.greedy(),
            friend.user_pcm[: 26 * FRAME_SAMPLES],
        ),
        Caller(
            Persona(voice=male),
            SamplingParams(seed=1 << 40, top_k_audio=40, temperature_text=1.5, top_k_text=300),
            friend.user_pcm[: 16 * FRAME_SAMPLES][::-1].copy(),
        ),
    ]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "packed", "int8", "int4"])
def each_engine(request: pytest.FixtureRequest, wide_checkpoint: Path) -> Engine:
    """An engine of every precision; packed and low-bit weights need wide layers."""
    config = EngineConfig(device="cpu", max_sessions=3)
    if request.param in ("float32", "bfloat16"):
        return Engine.load(CHECKPOINT, replace(config, dtype=request.param))
    checkpoint = load_checkpoint(
        wide_checkpoint,
        device=CPU,
        dtype=torch.float32,
        quantization=None if request.param == "packed" else request.param,
    )
    engine = Engine(checkpoint, VoiceLibrary(checkpoint.config), config)
    engine.add_voice("sample", VOICE_SAMPLE)
    return engine


def test_overlapping_sessions_emit_what_each_emits_alone(each_engine: Engine) -> None:
    with each_engine:
        alone = run_alone(each_engine, callers(each_engine))
        assert_same(alone, run_together(each_engine, callers(each_engine)))


def run_alone(engine: Engine, alone: list[Caller]) -> list[Caller]:
    """One session after the other."""
    for caller in alone:
        result = engine.converse(caller.persona, caller.pcm, caller.sampling)
        caller.frames = list(result.frames)
    return alone


def run_together(engine: Engine, together: list[Caller]) -> list[Caller]:
    """Open the sessions at ticks 0, 5 and 12, and close each after its last frame."""
    opens = {0: 0, 1: 5, 2: 12}
    for tick in range(40):
        present = []
        for index, caller in enumerate(together):
            if opens[index] == tick:
                caller.open(engine)
            if caller.session is None or caller.session.closed:
                continue
            if len(caller.frames) * FRAME_SAMPLES == len(caller.pcm):
                caller.session.close()
                continue
            present.append(caller)
        for caller in present:
            caller.push()
        for caller in present:
            caller.wait()
    return together


def assert_same(alone: list[Caller], together: list[Caller]) -> None:
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.tokens(), other.tokens())
        for mine, theirs in zip(one.frames, other.frames, strict=True):
            np.testing.assert_allclose(mine.pcm, theirs.pcm, atol=1e-5)


def test_a_reused_slot_leaves_no_trace(engine: Engine) -> None:
    first = callers(engine)
    expected = [engine.converse(c.persona, c.pcm, c.sampling) for c in first]
    for index in (2, 0, 1, 1, 0):
        caller = first[index]
        again = engine.converse(caller.persona, caller.pcm, caller.sampling)
        assert [f.text_token for f in again.frames] == [
            f.text_token for f in expected[index].frames
        ]
        np.testing.assert_array_equal(again.pcm, expected[index].pcm)


def test_seeds_change_the_tokens(engine: Engine) -> None:
    pcm = conversation("friend").user_pcm[: 10 * FRAME_SAMPLES]
    outputs = {
        tuple(f.text_token for f in engine.converse(FRIEND, pcm, SamplingParams(seed=seed)).frames)
        for seed in range(4)
    }
    assert len(outputs) == 4


def friend_prompt(engine: Engine) -> Prompt:
    checkpoint = engine.checkpoint
    tokens = text_prompt_tokens(FRIEND.text_prompt, checkpoint.tokenizer)
    return build_prompt(engine._voices.get(FRIEND.voice), tokens, checkpoint.config)


def test_150_frames_past_the_window_match_one_pass_over_all_frames(loaded_engine: Engine) -> None:
    """Step until the ring has wrapped around, then run the same inputs in one masked pass."""
    checkpoint = loaded_engine.checkpoint
    config, lm = checkpoint.config, checkpoint.lm
    prompt = friend_prompt(loaded_engine)
    prefix = Prefill(lm, prompt, CPU).advance(prompt.frames)
    assert prefix is not None
    runner = ModelRunner(config, lm, checkpoint.mimi, 2, CPU)
    runner.join(1, prefix, SamplingParams.greedy())

    columns = [*prompt.columns[:-1]]
    stepped: list[torch.Tensor] = []
    run_step = record(runner, columns, stepped)
    frames = 150 + config.lm.window
    noise = np.random.default_rng(5).uniform(-0.3, 0.3, (frames, 1, FRAME_SAMPLES))
    for pcm in torch.from_numpy(noise.astype(np.float32)):
        run_step(pcm)

    total = len(columns)
    cache = PromptKVCache(
        layers=config.lm.num_layers,
        heads=config.lm.num_heads,
        length=total,
        window=config.lm.window,
        head_dim=config.lm.dim // config.lm.num_heads,
        dtype=torch.float32,
        device=CPU,
    )
    x = lm.embed(torch.stack(columns))
    assert prompt.embeddings is not None
    x[: len(prompt.embeddings)] = prompt.embeddings
    with torch.inference_mode():
        hidden = lm(x[None], torch.arange(total)[None], cache.begin(total))[0]
        expected = lm.text_logits(hidden[prompt.frames :])
    torch.testing.assert_close(torch.stack(stepped), expected, atol=1e-4, rtol=1e-4)
    assert len(stepped) == frames


def record(
    runner: ModelRunner, columns: list[torch.Tensor], logits: list[torch.Tensor]
) -> Callable[[torch.Tensor], None]:
    """Return a function that steps slot 1 and stores the step's input column and text logits."""

    def step(pcm: torch.Tensor) -> None:
        column = runner.frame_step.grid._next[1].clone()
        head = runner.lm.text_logits

        def text_logits(hidden: torch.Tensor) -> torch.Tensor:
            row = head(hidden)
            logits.append(row[0].clone())
            return row

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner.lm, "text_logits", text_logits)
            output = runner.step(Batch.of([1], CPU), pcm)
        column[9] = output.user_codes[0, 0]
        columns.append(column)

    return step
