"""Quantised checkpoints: writing them, loading them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.checkpoint import export
from pipecat_personaplex.checkpoint.export import check_new_folder, save_quantized
from pipecat_personaplex.checkpoint.file_names import RELEASE_FILES
from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import QUANTIZATIONS, Quantization
from pipecat_personaplex.errors import CheckpointError, ConfigError, UserError
from pipecat_personaplex.models import device as device_module
from tests.golden_data import CHECKPOINT, conversation
from tests.helpers.checkpoints import MIMI_FILE, MODEL_FILE, WIDE, Tensors, edit

CPU = torch.device("cpu")
IN_PROJ = "transformer.layers.0.self_attn.in_proj_weight"
STACK = "depformer.layers.0.self_attn.out_proj.weight"


def load(folder: Path, quantization: Quantization | None = None, **options: object) -> Checkpoint:
    return load_checkpoint(
        folder, device=CPU, dtype=torch.float32, quantization=quantization, **options
    )


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / f"tiny-{request.param}"
    save_quantized(CHECKPOINT, folder, request.param)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An int8 folder for a test to modify."""
    save_quantized(CHECKPOINT, tmp_path / "copy", "int8")
    return tmp_path / "copy"


def quantization_of(folder: Path) -> Quantization:
    found: Quantization = json.loads((folder / "config.json").read_text())["quantization"]
    return found


def assert_same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for ours, theirs in (
        (one.named_parameters, other.named_parameters),
        (one.named_buffers, other.named_buffers),
    ):
        mine, yours = dict(ours()), dict(theirs())
        assert mine.keys() == yours.keys()
        for name, tensor in mine.items():
            if not tensor.is_mkldnn:
                assert tensor.dtype == yours[name].dtype
                # Compare bytes: fp8 has no equality.
                pair = (t.contiguous().view(torch.uint8) for t in (tensor, yours[name]))
                assert torch.equal(*pair), name


def test_it_loads_like_the_original_with_the_same_quantization(saved: Path) -> None:
    quantization = quantization_of(saved)
    written, original = load(saved), load(CHECKPOINT, quantization)
    assert written.quantization == original.quantization == quantization
    assert_same_tensors(written.lm, original.lm)
    assert_same_tensors(written.mimi, original.mimi)
    assert_same_tensors(load(saved, quantization).lm, original.lm)
    assert written.config.lm.dep_q == 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_low_bit_weights_do_not_stay_mapped_to_the_file(saved: Path) -> None:
    checkpoint = load(saved)
    assert str(saved) not in Path("/proc/self/maps").read_text()
    assert checkpoint.lm.text_emb.weight.isfinite().all()


def test_a_conversation_is_bit_identical_to_the_original(saved: Path) -> None:
    quantization = quantization_of(saved)
    config = EngineConfig(device="cpu", max_sessions=1, cpu_threads=1)
    pcm = conversation("restaurant").user_pcm[: 8 * 1920]
    conversations = []
    for engine in (
        Engine.load(saved, config),
        Engine.load(CHECKPOINT, EngineConfig(**{**vars(config), "quantization": quantization})),
    ):
        with engine:
            conversations.append(
                engine.converse(Persona(engine.voices[0]), pcm, SamplingParams(seed=3))
            )
    one, other = conversations
    assert (one.pcm == other.pcm).all()
    assert [f.text_token for f in one.frames] == [f.text_token for f in other.frames]


def test_the_tensors_of_the_file(saved: Path) -> None:
    quantization = quantization_of(saved)
    tensors, original = load_file(saved / MODEL_FILE), load_file(CHECKPOINT / MODEL_FILE)
    kinds = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}
    assert tensors[IN_PROJ].dtype == kinds[quantization]
    depth = kinds["int8" if quantization == "int4" else quantization]
    assert tensors[STACK].dtype == depth
    # Eight of sixteen depth steps are written; floating-point tensors are unchanged.
    assert tensors[STACK].shape[0] == original[STACK].shape[0] // 2
    assert tensors[f"{STACK}.scale"].shape == (tensors[STACK].shape[0],)
    for name in ("text_emb.weight", "out_norm.alpha", "text_linear.weight", "linears.7.weight"):
        assert torch.equal(tensors[name], original[name])
    assert "linears.8.weight" not in tensors
    assert sorted(path.name for path in saved.iterdir()) == sorted(RELEASE_FILES)
    assert (saved / MIMI_FILE).read_bytes() == (CHECKPOINT / MIMI_FILE).read_bytes()


def test_wide_weights(wide_checkpoint: Path, tmp_path: Path) -> None:
    for quantization in QUANTIZATIONS:
        save_quantized(wide_checkpoint, tmp_path / quantization, quantization)
        written, original = load(tmp_path / quantization).lm, load(wide_checkpoint, quantization).lm
        assert_same_tensors(written, original)
        hidden = torch.randn(2, WIDE.lm.dim)
        assert torch.equal(written.text_logits(hidden), original.text_logits(hidden))
    sizes = [(tmp_path / name / MODEL_FILE).stat().st_size for name in ("int4", "int8")]
    assert sizes[0] < sizes[1] < (wide_checkpoint / MODEL_FILE).stat().st_size


def test_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    save_quantized(
        CHECKPOINT, tmp_path / "out", "int4", lambda done, total: calls.append((done, total))
    )
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1]


def test_config_json_is_written_if_the_original_has_none(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    export._write_config(tmp_path / "none.json", path, "fp8")
    assert json.loads(path.read_text()) == {
        "model_type": "personaplex",
        "lm": {"dep_q": 8},
        "quantization": "fp8",
    }


@pytest.mark.parametrize("other", [q for q in QUANTIZATIONS if q != "int8"])
def test_loading_with_another_quantization_is_refused(copy: Path, other: Quantization) -> None:
    expected = f"holds int8 weights, which cannot become {other}; leave the quantization out"
    with pytest.raises(ConfigError, match=expected):
        load(copy, other)
    with pytest.raises(ConfigError, match=expected):
        Engine.load(copy, EngineConfig(device="cpu", quantization=other))


def test_low_bit_weights_cannot_be_quantised_again(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds int8 weights already; quantize the release"):
        save_quantized(copy, tmp_path / "again", "int4")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(f"{IN_PROJ}.scale"), rf"tensor {IN_PROJ}.scale is missing from"),
        (lambda t: t.pop(IN_PROJ), rf"tensor {IN_PROJ} is missing from"),
        (
            lambda t: t.update({f"{STACK}.scale": torch.ones(12).bfloat16()}),
            rf"tensor {STACK}.scale is \[12\], expected \[256\]",
        ),
        (
            lambda t: t.update({IN_PROJ: torch.zeros(192, 60, dtype=torch.int8)}),
            rf"tensor {IN_PROJ} is \[192, 60\], expected \[192, 64\]",
        ),
        (
            lambda t: t.update({IN_PROJ: torch.zeros(192, 64)}),
            rf"tensor {IN_PROJ} is F32, expected I8; .* config\.json, which is int8",
        ),
        (
            lambda t: t.update({f"{IN_PROJ}.scale": torch.ones(192)}),
            rf"tensor {IN_PROJ}.scale is F32, expected BF16",
        ),
        (
            lambda t: t.update({"text_linear.weight": t["text_linear.weight"].to(torch.int8)}),
            r"tensor text_linear.weight is I8, expected one of F32, F16, BF16",
        ),
        (
            lambda t: t.update({"out_proj.scale": torch.ones(3)}),
            r"tensor out_proj.scale has no place in the model",
        ),
    ],
)
def test_errors_name_the_bad_tensor(
    copy: Path, change: Callable[[Tensors], object], expected: str
) -> None:
    edit(copy / MODEL_FILE, change)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_low_bit_weights_without_quantization_in_config_json(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["quantization"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\.scale has no place in the model"):
        load(copy)


@pytest.mark.parametrize("value", ["int3", 8, ["int8"], {}])
def test_an_unknown_quantization(copy: Path, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization": value}))
    expected = f"quantization is {value!r}; known are: int8, fp8, int4"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(copy)


def test_fp8_needs_a_gpu_that_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    expected = "quantization fp8 needs a GPU of compute capability 8.9 or more and cuda:0"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        device_module.require_runnable("fp8", gpu)
    device_module.require_runnable("int4", gpu)
    device_module.require_runnable("fp8", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    device_module.require_runnable("fp8", gpu)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_an_existing_output_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(UserError, match=f"{name} is there already; choose another folder"):
            save_quantized(CHECKPOINT, tmp_path / name, "int8")
    with pytest.raises(UserError, match=r"there is no folder .*missing; create it first"):
        save_quantized(CHECKPOINT, tmp_path / "missing" / "out", "int8")
    assert sorted(leftovers(tmp_path)) == ["file", "folder", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"you may not write to .*; choose another folder"):
        check_new_folder(tmp_path / "out")


FULL = """
import resource, sys
from pipecat_personaplex.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["quantize", "--model", sys.argv[1], "--quantization", "int8", "-o", sys.argv[2]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_no_partial_folder_is_left_on_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(CHECKPOINT), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'out'}: File too large\n"
    assert leftovers(tmp_path) == []


def test_a_failed_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: Path, to: Path) -> None:
        raise OSError(28, "No space left on device", str(source))  # as the real one does

    monkeypatch.setattr(shutil, "copyfile", fail)
    output = tmp_path / "out"
    arguments = ["quantize", "--model", str(CHECKPOINT), "--quantization", "int8", "-o"]
    assert main([*arguments, str(output)]) == 1
    assert capsys.readouterr().err.endswith(f"error: {output}: No space left on device\n")
    assert leftovers(tmp_path) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["quantize", "--model", str(CHECKPOINT), "--output", str(output)]
    assert main([*arguments, "--quantization", "int4"]) == 0
    assert re.fullmatch(
        rf"{output}: model.safetensors [\d.]+ -> [\d.]+ GB\n", capsys.readouterr().out
    )
    assert quantization_of(output) == "int4"
    assert main([*arguments, "--quantization", "int4"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*arguments, "--quantization", "int3"]) == 2
    assert "int3" in capsys.readouterr().err
    assert main(["quantize", "--quantization", "int8", "-o", "x", "--model", "/no/where"]) == 2
    # Drift needs floating-point weights, which such a folder does not have.
    assert main(["drift", "--model", str(output), "--device", "cpu", "--frames", "20"]) == 2
    assert "holds int4 weights, and drift compares with float32" in capsys.readouterr().err
