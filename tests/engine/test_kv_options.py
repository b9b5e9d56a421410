"""Effects of ``kv_dtype`` and ``context`` on a session, and their validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.bench.drift import DriftOptions, compare, record
from pipecat_personaplex.cli import main
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.device import resolve_kv_dtype
from pipecat_personaplex.quantization.fp8 import FP8
from tests.golden_data import CHECKPOINT, FRIEND, RESTAURANT, VOICE_SAMPLE, conversation
from tests.helpers.checkpoints import WIDE, write_checkpoint

FRAMES = 30
CONFIG = EngineConfig(device="cpu", dtype="float32", max_sessions=1)


def tokens(result: Conversation) -> list[list[int]]:
    return [[f.text_token, *f.agent_codes, *f.user_codes] for f in result.frames]


def talk(engine: Engine, persona: Persona = FRIEND, seed: int = 5) -> Conversation:
    pcm = conversation("friend").user_pcm[: FRAMES * FRAME_SAMPLES]
    return engine.converse(persona, pcm, SamplingParams(seed=seed))


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        ("float32", "fp8"),
        ("bfloat16", "fp8"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
    ],
)
def test_a_session_leaves_no_trace_in_its_slot(dtype: str, kv_dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype, kv_dtype=kv_dtype)
    with Engine.load(CHECKPOINT, config) as engine:
        first = talk(engine)
        other = talk(engine, RESTAURANT, seed=6)
        again = talk(engine)
    assert len(first.frames) == FRAMES
    assert np.isfinite(first.pcm).all()
    assert tokens(first) != tokens(other)
    assert tokens(first) == tokens(again)
    np.testing.assert_array_equal(first.pcm, again.pcm)


def test_fp8_drifts_more_than_bfloat16_and_stays_close() -> None:
    options = DriftOptions(str(CHECKPOINT), frames=100, engine=CONFIG)
    reference = record(options)
    errors = {}
    for kv_dtype in ("float32", "bfloat16", "fp8"):
        metrics = compare(reference, replace(options, engine=replace(CONFIG, kv_dtype=kv_dtype)))
        errors[kv_dtype] = metrics.logit_error
    assert errors["float32"].max() == 0
    assert 0 < errors["bfloat16"].mean() < errors["fp8"].mean() < 0.05
    # 100 frames are twice the window: errors in the ring do not accumulate.
    assert errors["fp8"][-30:].mean() < 2 * errors["fp8"][:30].mean()


def test_memory_of_a_slot() -> None:
    sizes = {
        kv_dtype: Engine.load(
            CHECKPOINT, replace(CONFIG, kv_dtype=kv_dtype)
        )._loop._runner.frame_step.kv.nbytes
        for kv_dtype in ("float32", "bfloat16", "fp8")
    }
    features = 64 // 4
    assert sizes["float32"] == 2 * sizes["bfloat16"]
    assert sizes["fp8"] * 2 * features == sizes["bfloat16"] * (features + 4)


def test_a_smaller_context_equals_a_checkpoint_with_that_context(tmp_path: Path) -> None:
    def run(made_for: int, context: int) -> list[list[int]]:
        folder = tmp_path / f"{made_for}"
        if not folder.exists():
            write_checkpoint(folder, replace(WIDE, lm=replace(WIDE.lm, context=made_for)))
        engine = Engine.load(folder, replace(CONFIG, context=context))
        engine.add_voice("sample", VOICE_SAMPLE)
        with engine:
            return tokens(talk(engine, Persona("sample", RESTAURANT.text_prompt)))

    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    try:
        whole, small, made_small = run(120, 0), run(120, 64), run(64, 0)
    finally:
        logger.remove(sink)
    # One warning, for the context that the user has reduced below the prompt's length.
    (line,) = lines
    assert "does not fit into the context 64" in line
    assert small == made_small
    assert small != whole
    assert run(120, 120) == whole


def test_a_context_beyond_the_checkpoints_is_rejected_before_loading() -> None:
    with pytest.raises(ConfigError, match="context 64 is more than the 48 frames"):
        Engine.load(CHECKPOINT, replace(CONFIG, context=64))


@pytest.mark.parametrize("context", [-1, 1, 63, 64.0, True])
def test_a_context_below_64_frames_is_rejected(context: int) -> None:
    with pytest.raises(ConfigError, match=r"context must be 0 .* or at least 64"):
        EngineConfig(context=context)


@pytest.mark.parametrize("command", ["drift", "bench", "offline", "serve"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--kv-dtype", "fp4"], "fp4"), (["--context", "10"], "at least 64 frames, not 10")],
)
def test_invalid_options_print_one_line(
    capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], message: str
) -> None:
    offline = ["--voice", "NATF2", "--input", "a.wav", "--output", "b.wav"]
    given = offline if command == "offline" else []
    assert main([command, *given, "--model", str(CHECKPOINT), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_fp8_is_rejected_on_gpus_without_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (8, 6)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    with pytest.raises(ConfigError, match=r"8\.9 or more and cuda has 8\.6; take bfloat16"):
        resolve_kv_dtype("fp8", torch.bfloat16, device)
    assert resolve_kv_dtype("bfloat16", torch.bfloat16, device) == torch.bfloat16
    capability = (8, 9)
    assert resolve_kv_dtype("fp8", torch.bfloat16, device) == FP8


def test_low_bit_weights_on_a_cpu_store_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, plain = torch.device("cpu"), torch.float32
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)
    assert resolve_kv_dtype("auto", plain, cpu) == plain
    assert resolve_kv_dtype("auto", plain, cpu, "int4") == torch.bfloat16
    assert resolve_kv_dtype("float32", plain, cpu, "int4") == plain
    assert resolve_kv_dtype("auto", torch.bfloat16, torch.device("cuda"), "int8") == torch.bfloat16
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    assert resolve_kv_dtype("auto", plain, cpu, "int4") == plain


def test_drift_reports_the_compared_types(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(CHECKPOINT), "--device", "cpu", "--frames", "20"]
    assert main(["drift", *arguments, "--kv-dtype", "fp8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "float32, keys and values in fp8 against float32" in lines[0]
    assert '"dtype": "float32", "quantization": null, "kv_dtype": "fp8", "context": 0' in lines[-1]
