"""A captured and replayed step computes what the eager step computes.

A stand-in records the graphs here; it is as strict as CUDA: see ``helpers.recording``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from loguru import logger

from pipecat_personaplex import Engine, EngineConfig, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.cuda_graphs import Capturer, batch_sizes, spare_slots
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix
from pipecat_personaplex.engine.speaker import only_if_word
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.quantization.kv import KVTensor
from tests.engine.test_batching import (
    Caller,
    assert_same,
    callers,
    friend_prompt,
    run_alone,
    run_together,
)
from tests.engine.test_golden import assert_equals_reference
from tests.golden_data import CHECKPOINT, conversation
from tests.helpers.recording import (
    NotCapturable,
    Recorder,
    RecordingCapturer,
    no_host_reads,
    tensors,
)

CPU = torch.device("cpu")
SLOTS = 6


def fixed_runner(engine: Engine) -> ModelRunner:
    checkpoint = engine.checkpoint
    config = checkpoint.config
    return ModelRunner(config, checkpoint.lm, checkpoint.mimi, SLOTS, CPU, fixed=True)


@pytest.fixture(scope="module")
def base_engine() -> Engine:
    return Engine.load(CHECKPOINT, EngineConfig(device="cpu", dtype="float32", max_sessions=SLOTS))


@pytest.fixture
def capturer() -> RecordingCapturer:
    return RecordingCapturer()


@pytest.fixture
def graph_engine(base_engine: Engine, capturer: RecordingCapturer) -> Engine:
    """An engine whose steps are replayed."""
    engine = Engine(base_engine.checkpoint, base_engine._voices, base_engine.config)
    runner = fixed_runner(engine)
    runner.capture(capturer)
    assert runner.captured
    engine._loop._runner = runner
    return engine


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    yield messages
    logger.remove(sink)


@pytest.fixture
def prefix(base_engine: Engine) -> Prefix:
    prompt = friend_prompt(base_engine)
    prefix = Prefill(base_engine.checkpoint.lm, prompt, CPU).advance(prompt.frames)
    assert prefix is not None
    return prefix


def callers_within_graphs(engine: Engine) -> list[Caller]:
    """The callers of ``callers``, none of which requests more candidates than graphs rank."""
    first, second, third = callers(engine)
    third.sampling = replace(third.sampling, top_k_text=200)
    return [first, second, third]


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_a_replayed_conversation_equals_the_reference(
    graph_engine: Engine, capturer: RecordingCapturer, name: str
) -> None:
    golden = conversation(name)
    with graph_engine:
        result = graph_engine.converse(golden.persona, golden.user_pcm, SamplingParams.greedy())
    assert_equals_reference(result, golden)
    assert capturer.replays >= len(result.frames)


def test_overlapping_sessions_replay_graphs(
    base_engine: Engine,
    graph_engine: Engine,
    capturer: RecordingCapturer,
    warnings: list[str],
) -> None:
    """Batches have one to three rows; three rows are padded to four."""
    with base_engine:
        alone = run_alone(base_engine, callers_within_graphs(base_engine))
    before = capturer.replays
    with graph_engine:
        together = run_together(graph_engine, callers_within_graphs(graph_engine))
        assert_same(alone, together)
        assert capturer.replays - before == graph_engine.stats().steps
        again = run_together(graph_engine, callers_within_graphs(graph_engine)[::-1])
    assert_same(alone, again[::-1])
    assert warnings == []


def test_a_session_that_requests_more_candidates_steps_without_a_graph_and_is_logged_once(
    base_engine: Engine,
    graph_engine: Engine,
    capturer: RecordingCapturer,
    warnings: list[str],
) -> None:
    with base_engine:
        alone = run_alone(base_engine, callers(base_engine))
    before = capturer.replays
    with graph_engine:
        assert_same(alone, run_together(graph_engine, callers(graph_engine)))
        wide = len(alone[2].frames)
        assert capturer.replays - before == graph_engine.stats().steps - wide
    (warning,) = warnings
    assert "samples from the 300 likeliest tokens, but graphs rank 256" in warning


def steps(
    runner: ModelRunner, prefix: Prefix, between: Callable[[int], None] = lambda tick: None
) -> list[list[int]]:
    """Tokens of three of six slots over 30 frames; one joins late, one changes its sampling."""
    noise = np.random.default_rng(3).uniform(-0.3, 0.3, (30, 3, FRAME_SAMPLES))
    tokens = []
    placed: dict[int, int] = {}
    for tick, pcm in enumerate(torch.from_numpy(noise.astype(np.float32))):
        if tick == 0:
            runner.join(1, prefix, SamplingParams(seed=1))
            runner.join(4, prefix, SamplingParams(seed=2))
        if tick == 9:
            runner.join(2, prefix, SamplingParams(seed=3))
        if tick == 15:
            runner.set_sampling(4, SamplingParams(seed=9, temperature_text=2.0, top_k_audio=40))
        between(tick)
        slots = [1, 4] if tick < 9 else [1, 2, 4]
        # One token is forced, and one is placed where the model samples a word.
        codes = {3: [-1, 5, -1], 5: [only_if_word(6), -1, 7]}.get(tick % 7)
        forced = torch.tensor(codes[: len(slots)]) if codes else None
        output = runner.step(Batch.of(slots, CPU), pcm[: len(slots)], forced)
        if placed.keys() == set(slots):
            assert placed == dict(zip(slots, output.text.tolist(), strict=True))
        placed = dict(zip(slots, output.next_text.tolist(), strict=True))
        tokens += output.tokens().tolist()
        assert output.finite.all()
    return tokens


def state_addresses(runner: ModelRunner) -> dict[str, int]:
    """The address of every tensor that lives as long as the runner."""
    addresses: dict[str, int] = {}
    owned = {"fixed": runner._fixed, **vars(runner.frame_step)}
    for name in ("kv", "grid", "sampler", "codec", "fixed"):
        owner = owned[name]
        owners = {name: owner}
        for part in ("_encoder_kv", "_decoder_kv", "_buffers"):
            if hasattr(owner, part):
                owners[f"{name}.{part}"] = getattr(owner, part)
        for path, each in owners.items():
            for key, value in vars(each).items():
                if isinstance(value, KVTensor):
                    value = (value.data, value.scales)
                for index, tensor in enumerate(tensors(value)):
                    addresses[f"{path}.{key}.{index}"] = tensor.data_ptr()
    for name in ("prompt_frames", "frames"):
        addresses[name] = owned[name].data_ptr()
    return addresses


def test_joining_and_stepping_change_no_address(
    base_engine: Engine, prefix: Prefix, capturer: RecordingCapturer
) -> None:
    checkpoint = base_engine.checkpoint
    plain = ModelRunner(checkpoint.config, checkpoint.lm, checkpoint.mimi, SLOTS, CPU)
    runner = fixed_runner(base_engine)
    runner.capture(capturer)
    before = state_addresses(runner)
    assert len(before) > 18
    assert steps(runner, prefix) == steps(plain, prefix)
    assert state_addresses(runner) == before


def test_the_scratch_slots_state_affects_no_session(
    base_engine: Engine, prefix: Prefix, capturer: RecordingCapturer
) -> None:
    runner = fixed_runner(base_engine)
    runner.capture(capturer)
    expected = steps(runner, prefix)

    def poison(tick: int) -> None:
        codec = runner.frame_step.codec
        codec._conv[SLOTS] = torch.nan
        for ring in (runner.frame_step.kv, codec._encoder_kv, codec._decoder_kv):
            ring.keys[:, SLOTS] = torch.nan
            ring.values[:, SLOTS] = torch.nan

    assert steps(runner, prefix, poison) == expected
    assert runner.frame_step.codec._conv[SLOTS].isnan().any()
    assert runner.frame_step.frames[SLOTS] == 0


def test_the_next_step_does_not_change_an_output(
    base_engine: Engine, prefix: Prefix, capturer: RecordingCapturer
) -> None:
    runner = fixed_runner(base_engine)
    runner.capture(capturer)
    runner.join(0, prefix, SamplingParams())
    batch, pcm = Batch.of([0], CPU), torch.zeros(1, FRAME_SAMPLES)
    output = runner.step(batch, pcm)
    tokens, audio = output.tokens().clone(), output.pcm.clone()
    runner.step(batch, pcm + 0.1)
    assert torch.equal(output.tokens(), tokens)
    assert torch.equal(output.pcm, audio)


class FailsToCapture:
    def capture(self, call: Callable[[], None]) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long dump")


class ReplaysNothing:
    """Its replay computes nothing, so the output buffer stays as it is."""

    def capture(self, call: Callable[[], None]) -> Callable[[], object]:
        call()
        return lambda: None


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [
        (FailsToCapture(), "RuntimeError: operation not permitted when stream is capturing"),
        (ReplaysNothing(), "a replayed step differs from the eager step"),
    ],
)
def test_a_failed_capture_is_logged_once_and_steps_run_without_graphs(
    base_engine: Engine, prefix: Prefix, warnings: list[str], capturer: Capturer, reason: str
) -> None:
    checkpoint = base_engine.checkpoint
    plain = ModelRunner(checkpoint.config, checkpoint.lm, checkpoint.mimi, SLOTS, CPU)
    runner = fixed_runner(base_engine)
    runner.capture(capturer)
    assert not runner.captured
    assert steps(runner, prefix) == steps(plain, prefix)
    assert warnings == [f"steps run without graphs, which makes them slower: {reason}\n"]


@pytest.mark.parametrize("column", [0, -1], ids=["a token", "a sample"])
def test_a_graph_whose_second_row_is_wrong_is_not_used(
    base_engine: Engine, warnings: list[str], capturer: RecordingCapturer, column: int
) -> None:
    runner = fixed_runner(base_engine)
    step = runner._fixed
    assert step is not None

    class ChangesRowOne:
        def capture(self, call: Callable[[], None]) -> Callable[[], object]:
            replay = capturer.capture(call)

            def replay_and_change() -> None:
                replay()
                step._buffers._out[1, column] ^= 1 << 30

            return replay_and_change

    runner.capture(ChangesRowOne())
    assert not runner.captured
    (warning,) = warnings
    assert "a replayed step differs from the eager step" in warning


def test_a_cpu_captures_nothing(base_engine: Engine) -> None:
    checkpoint = base_engine.checkpoint
    runner = ModelRunner(checkpoint.config, checkpoint.lm, checkpoint.mimi, 1, CPU)
    runner.capture()
    assert not runner.captured
    assert runner.graph_bytes == 0


@pytest.mark.parametrize("wanted", [True, False])
def test_cuda_graphs_false_disables_the_capture(
    base_engine: Engine, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    captured: list[ModelRunner] = []
    monkeypatch.setattr(ModelRunner, "capture", lambda runner: captured.append(runner))
    config = replace(base_engine.config, cuda_graphs=wanted)
    Engine(base_engine.checkpoint, base_engine._voices, config)
    assert len(captured) == wanted


def test_cuda_graphs_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="cuda_graphs must be true or false, not 'no'"):
        EngineConfig(cuda_graphs="no")  # type: ignore[arg-type]


def test_batch_sizes_end_with_every_slot() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(3) == (1, 2, 3)
    assert batch_sizes(8) == (1, 2, 4, 8)
    assert batch_sizes(100) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    assert batch_sizes(250)[-2:] == (192, 250)


def test_a_spare_slot_exists_if_batches_may_be_padded() -> None:
    assert [spare_slots(slots) for slots in (1, 2, 3, 4, 8, 100)] == [0, 0, 0, 1, 1, 1]


def test_a_slot_used_for_the_capture_serves_a_session_afterwards(
    base_engine: Engine, capturer: RecordingCapturer
) -> None:
    checkpoint = base_engine.checkpoint
    engine = Engine(checkpoint, base_engine._voices, replace(base_engine.config, max_sessions=3))
    runner = ModelRunner(checkpoint.config, checkpoint.lm, checkpoint.mimi, 3, CPU, fixed=True)
    assert runner.frame_step.slots == 3
    runner.capture(capturer)
    assert runner.captured
    engine._loop._runner = runner
    with base_engine:
        alone = run_alone(base_engine, callers_within_graphs(base_engine))
    with engine:
        assert_same(alone, run_together(engine, callers_within_graphs(engine)))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, 1.0),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.add_(torch.from_numpy(np.ones(4, dtype=np.float32))),
    ],
)
def test_the_stand_in_refuses_calls_that_cuda_cannot_capture(
    call: Callable[[torch.Tensor], object],
) -> None:
    x = torch.zeros(4)
    with pytest.raises(NotCapturable), no_host_reads(), Recorder():
        call(x)


def test_the_stand_in_replays_tensor_operations_with_pythons_values_fixed() -> None:
    source, total = torch.ones(4), torch.zeros(4)
    factor, runs = 2.0, 0

    def call() -> None:
        nonlocal runs
        runs += 1
        doubled = source * factor
        view = doubled.view(2, 2)[0]
        view.add_(10)
        total.add_(doubled)

    replay = RecordingCapturer().capture(call)
    assert runs == 2
    total.zero_()
    source.copy_(torch.arange(4.0))
    factor = 100.0
    replay()
    replay()
    assert total.tolist() == [20.0, 24.0, 8.0, 12.0]
    assert runs == 2


def test_warming_up_prompts_changes_no_state(base_engine: Engine) -> None:
    runner = fixed_runner(base_engine)
    before = [tensor.clone() for tensor in tensors(vars(runner))]
    runner.warm_up_prompts(64)
    for old, new in zip(before, tensors(vars(runner)), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
