"""Loading: every parameter gets its tensor, memory stays bounded, and errors name the cause."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint, random_model
from pipecat_personaplex.config import QUANTIZATIONS
from pipecat_personaplex.errors import CheckpointError, ConfigError
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from pipecat_personaplex.models.linear import PackedLinear
from pipecat_personaplex.models.low_bit_linear import low_bit_linear
from pipecat_personaplex.quantization.weights import quantize
from tests.golden_data import CHECKPOINT
from tests.helpers.checkpoints import (
    MIMI_FILE,
    MODEL_FILE,
    SMALL_MIMI,
    TOKENIZER_FILE,
    Tensors,
    copy_tiny,
    edit,
    weight_of,
    write_checkpoint,
)
from tests.helpers.memory import loading_peaks

CPU = torch.device("cpu")
LM = LMConfig(
    dim=32,
    num_layers=2,
    num_heads=2,
    context=20,
    text_card=320,
    depformer_dim=16,
    depformer_dim_feedforward=48,
    depformer_num_heads=2,
    depformer_num_layers=1,
)


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=dtype, **options)


def config_with(dep_q: int) -> ModelConfig:
    return ModelConfig(lm=dataclasses.replace(LM, dep_q=dep_q), mimi=SMALL_MIMI)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name


def test_every_parameter_is_read_from_its_tensor() -> None:
    checkpoint = load(CHECKPOINT)
    lm, mimi = checkpoint.lm, checkpoint.mimi
    file = {name: tensor.float() for name, tensor in load_file(CHECKPOINT / MODEL_FILE).items()}
    codec = load_file(CHECKPOINT / MIMI_FILE)
    assert torch.equal(lm.audio_emb.weight[5 * 2049 : 6 * 2049], file["emb.5.weight"])
    layer = lm.transformer.layers[1]
    theirs = "transformer.layers.1"
    assert torch.equal(layer.self_attn.in_proj.weight, file[f"{theirs}.self_attn.in_proj_weight"])
    assert torch.equal(layer.norm2.alpha, file[f"{theirs}.norm2.alpha"][0, 0])
    depth, stack = lm.depth.layers[1], "depformer.layers.1"
    in_proj = file[f"{stack}.self_attn.in_proj_weight"].view(16, 96, 32)
    out_proj = file[f"{stack}.self_attn.out_proj.weight"].view(16, 32, 32)
    for step in range(8):
        assert torch.equal(depth.self_attn[step].in_proj.weight, in_proj[step])
        assert torch.equal(depth.self_attn[step].out_proj.weight, out_proj[step])
        assert torch.equal(
            depth.gating[step].linear_in.weight, file[f"{stack}.gating.{step}.linear_in.weight"]
        )
        assert torch.equal(lm.depth.heads[step].weight, file[f"linears.{step}.weight"])
    book = "quantizer.rvq_rest.vq.layers.6._codebook"
    centroids = codec[f"{book}.embedding_sum"] / codec[f"{book}.cluster_usage"][:, None]
    torch.testing.assert_close(mimi.quantizer.acoustic.centroids[6], centroids)
    ups = codec["decoder.model.8.convtr.convtr.weight"]
    taps = weight_of(mimi.decoder.ups[2].taps, 16).view(10, 8, 16)
    assert torch.equal(taps, ups.permute(2, 1, 0))
    down = codec["encoder.model.6.conv.conv.weight"]
    taps = weight_of(mimi.encoder.downs[1].taps, 80).view(16, 10, 8)
    assert torch.equal(taps, down.transpose(1, 2))
    scale = codec["encoder_transformer.transformer.layers.1.layer_scale_2.scale"]
    assert torch.equal(mimi.encoder_transformer.layers[1].scale2, scale)
    tokenizer = checkpoint.tokenizer
    assert tokenizer.serialized_model_proto() == (CHECKPOINT / TOKENIZER_FILE).read_bytes()
    assert tokenizer.get_piece_size() == checkpoint.config.lm.text_card
    assert [tokenizer.id_to_piece(token) for token in (0, 3)] == ["<unk>", "<pad>"]
    assert tokenizer.decode(tokenizer.encode("Good morning.")) == "Good morning."


def test_unused_codebook_entries_do_not_divide_by_zero(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    book = "quantizer.rvq_first.vq.layers.0._codebook"
    edit(folder / MIMI_FILE, lambda t: t[f"{book}.cluster_usage"][7].zero_())
    expected = load_file(folder / MIMI_FILE)[f"{book}.embedding_sum"][7] / 1e-5
    assert torch.equal(load(folder).mimi.quantizer.semantic.centroids[0, 7], expected)


@pytest.mark.parametrize("dep_q", [8, 16])
def test_files_of_8_and_of_16_depth_steps_give_the_same_model(tmp_path: Path, dep_q: int) -> None:
    sixteen = load(write_checkpoint(tmp_path / "sixteen", config_with(16)))
    other = load(write_checkpoint(tmp_path / "other", config_with(dep_q)))
    assert_same(sixteen.lm, other.lm)
    assert_same(sixteen.mimi, other.mimi)
    assert other.config.lm.dep_q == dep_q


@pytest.mark.parametrize("dep_q", [8, 16])
def test_the_number_of_depth_steps_is_read_from_the_weights(tmp_path: Path, dep_q: int) -> None:
    folder = write_checkpoint(tmp_path / "model", config_with(dep_q))
    config = json.loads((folder / "config.json").read_text())
    config["lm"]["dep_q"] = 24 - dep_q
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).config.lm.dep_q == dep_q


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_models_are_ready_to_run(
    wide_checkpoint: Path, dtype: torch.dtype, quantization: str | None
) -> None:
    checkpoint = load(wide_checkpoint, dtype, quantization=quantization)
    lm, mimi = checkpoint.lm, checkpoint.mimi
    assert lm.dtype == dtype
    assert {p.dtype for p in mimi.parameters()} == {torch.float32}
    for model in (lm, mimi):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad or p.is_meta for p in model.parameters())
        assert {b.device for b in model.buffers()} <= {CPU}
    forms = {
        format: type(low_bit_linear(quantize(torch.ones(16, 64), format)))
        for format in QUANTIZATIONS
    }
    low_bit = {
        name: type(module)
        for name, module in lm.named_modules()
        if isinstance(module, tuple(forms.values()))
    }
    if quantization is None:
        assert not low_bit
    else:
        assert low_bit["transformer.layers.1.gating.linear_out"] is forms[quantization]
        # With int4 the depth transformer is int8.
        in_depth = forms["int8" if quantization == "int4" else quantization]
        assert low_bit["depth.layers.0.self_attn.7.in_proj"] is in_depth
        assert low_bit["depth.inputs.0"] is in_depth
        assert not any("heads" in name or "text_linear" in name for name in low_bit)
    assert not any(isinstance(module, tuple(forms.values())) for module in mimi.modules())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_do_not_stay_mapped_to_the_file(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    checkpoint = load(folder, torch.bfloat16)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert checkpoint.lm.text_emb.weight.isfinite().all()


def test_progress_counts_up_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    checkpoint = load(CHECKPOINT, progress=lambda done, total: calls.append((done, total)))
    models = (checkpoint.lm, checkpoint.mimi)
    weights = sum(parameter.numel() for model in models for parameter in model.parameters())
    weights += sum(
        module.packed.numel()
        for model in models
        for module in model.modules()
        if isinstance(module, PackedLinear)
    )
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == (weights, weights)


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_random_models_compute_finite_logits(quantization: str | None) -> None:
    config = config_with(8)
    models = [
        random_model(config, device=CPU, dtype=torch.float32, quantization=quantization, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert_same(models[0][0], models[1][0])
    assert not torch.equal(models[0][0].text_emb.weight, models[2][0].text_emb.weight)
    lm, mimi = models[0]
    hidden = torch.randn(2, LM.dim)
    codes = lm.depth(hidden, torch.zeros(2, dtype=torch.int64), lambda _, x: x.argmax(-1))
    assert codes.shape == (2, 8)
    assert lm.text_logits(hidden).isfinite().all()
    assert mimi.quantizer.decode(codes).isfinite().all()


LOAD = """
from pathlib import Path
from pipecat_personaplex.checkpoint.loader import load_checkpoint

def load(quantization, folder=sys.argv[2]):
    checkpoint = load_checkpoint(
        Path(folder), device=torch.device("cpu"), dtype=torch.float32, quantization=quantization
    )
    return checkpoint.lm, checkpoint.mimi

for quantization in sys.argv[1].split(","):  # so that libraries and kernels allocate memory first
    load(quantization or None, sys.argv[3])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_never_in_memory_twice(tmp_path: Path) -> None:
    lm = dataclasses.replace(LM, dim=256, num_layers=32, num_heads=8)
    folder = write_checkpoint(tmp_path / "model", ModelConfig(lm=lm, mimi=SMALL_MIMI))
    small = write_checkpoint(tmp_path / "small", config_with(16))
    variants = [None, *QUANTIZATIONS]
    peaks = loading_peaks(LOAD, variants, str(folder), str(small))
    for quantization, (peak, result) in zip(variants, peaks, strict=True):
        # One weight at a time is in memory in its plain and in its packed form.
        most = 1.35 if quantization is None else 1.2
        assert result > 40e6
        assert peak < most * result, (
            f"{quantization}: peak {peak / 1e6:.0f} MB of {result / 1e6:.0f} MB"
        )


def drop(name: str) -> object:
    return lambda tensors: tensors.pop(name)


def replace(name: str, tensor: torch.Tensor) -> object:
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (MODEL_FILE, drop("linears.3.weight"), r"tensor linears\.3\.weight is missing from .*"),
        (MODEL_FILE, drop("depformer.layers.0.self_attn.out_proj.weight"), r"is missing from"),
        (
            MODEL_FILE,
            replace("out_norm.alpha", torch.zeros(1, 1, 9)),
            r"tensor out_norm\.alpha is \[1, 1, 9\], expected \[1, 1, 64\]; .* config\.json",
        ),
        (
            MODEL_FILE,
            replace("depformer.layers.0.self_attn.out_proj.weight", torch.zeros(12 * 32, 32)),
            r"is \[384, 32\], expected \[256, 32\] or \[512, 32\]",
        ),
        (
            MODEL_FILE,
            replace("depformer.layers.1.self_attn.in_proj_weight", torch.zeros(8 * 96, 32)),
            r"in_proj_weight is \[768, 32\], expected \[1536, 32\]",
        ),
        (
            MODEL_FILE,
            replace("emb.9.weight", torch.zeros(2049, 64, dtype=torch.int8)),
            r"tensor emb\.9\.weight is I8, expected one of F32, F16, BF16",
        ),
        (
            MODEL_FILE,
            replace("transformer.layers.3.norm1.alpha", torch.zeros(1, 1, 64)),
            r"tensor transformer\.layers\.3\.norm1\.alpha has no place in the model",
        ),
        (
            MIMI_FILE,
            drop("quantizer.rvq_rest.vq.layers.6._codebook.cluster_usage"),
            r"layers\.6\._codebook\.cluster_usage is missing from .*tokenizer-",
        ),
        (
            MIMI_FILE,
            replace("encoder.model.0.conv.conv.bias", torch.zeros(5)),
            r"tensor encoder\.model\.0\.conv\.conv\.bias is \[5\], expected \[4\]",
        ),
    ],
)
def test_errors_name_the_tensor_that_does_not_match(
    tmp_path: Path, file: str, change: object, expected: str
) -> None:
    folder = copy_tiny(tmp_path)
    edit(folder / file, change)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_without_config_json_the_7b_is_expected(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected \[8192, 1024\] or \[16384, 1024\]"):
        load(folder)


@pytest.mark.parametrize("file", [MODEL_FILE, MIMI_FILE])
@pytest.mark.parametrize("keep", [0, 5, 5000, -1])
def test_a_truncated_file(tmp_path: Path, file: str, keep: int) -> None:
    path = copy_tiny(tmp_path) / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is cut off or not a safetensors file") as caught:
        load(path.parent)
    assert "\n" not in str(caught.value)


def test_the_error_names_all_missing_files(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    (folder / MODEL_FILE).unlink()
    (folder / TOKENIZER_FILE).unlink()
    expected = f"{folder} has no {MODEL_FILE}, {TOKENIZER_FILE}; a PersonaPlex checkpoint"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100])
def test_a_damaged_tokenizer(tmp_path: Path, content: bytes) -> None:
    folder = copy_tiny(tmp_path)
    (folder / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        load(folder)


def test_a_tokenizer_of_another_checkpoint(tmp_path: Path) -> None:
    config = dataclasses.replace(config_with(8), lm=dataclasses.replace(LM, text_card=100))
    with pytest.raises(CheckpointError, match="has 320 pieces and the language model 100"):
        load(write_checkpoint(tmp_path / "model", config))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"lm": ', "not readable JSON"),
        (b"\xff\xfe{", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b"[]", "must hold a JSON object, not list"),
        (b'{"lm": {"dimension": 3}}', "unknown lm key 'dimension'"),
    ],
)
def test_an_invalid_config_json(tmp_path: Path, content: bytes, expected: str) -> None:
    folder = copy_tiny(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load(folder)


def test_a_file_of_another_model(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path)
    tensors: Tensors = {"weight": torch.zeros(3)}
    save_file(tensors, folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"depformer\S+ is missing from"):
        load(folder)
