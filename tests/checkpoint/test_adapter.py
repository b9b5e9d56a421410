"""LoRA adapters in Kyutai's layout: merged as in ``moshi``, and refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.checkpoint.export import save_quantized
from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint
from pipecat_personaplex.errors import CheckpointError, ConfigError
from tests.helpers.checkpoints import MODEL_FILE, WIDE, Tensors, write_checkpoint
from tests.helpers.kyutai import (
    CPU,
    NAMES,
    RANK,
    SCALING,
    SMALL,
    adapter_tensors,
    assert_logits_agree,
    peer_lm,
    write_adapter,
    write_kyutai,
)
from tests.helpers.memory import loading_peaks

pytestmark = pytest.mark.usefixtures("no_compiler")

CONFIG = dataclasses.replace(SMALL, lm=dataclasses.replace(SMALL.lm, depformer_num_layers=1))
FRAMES = 8
SIXTEEN = dataclasses.replace(CONFIG, lm=dataclasses.replace(CONFIG.lm, dep_q=16))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the release's tensors, and 16 depth steps."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", SIXTEEN)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return adapter_tensors(CONFIG)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "adapter", tensors)


@pytest.fixture(scope="module")
def wide_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for ``wide_checkpoint``."""
    return write_adapter(tmp_path_factory.mktemp("adapter") / "wide", adapter_tensors(WIDE))


def load(folder: Path, adapter: Path | None = None, **options: object) -> Checkpoint:
    found = None if adapter is None else find_adapter(str(adapter), progress=False)
    return load_checkpoint(
        folder,
        device=CPU,
        dtype=torch.float32,
        adapter=found,
        **options,  # type: ignore[arg-type]
    )


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    other = theirs.lm.state_dict()
    for name, tensor in ours.lm.state_dict().items():
        assert torch.equal(tensor, other[name]), name


def test_merged_weights_give_the_logits_of_moshi(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = load(base, adapter)
    # moshi does not load weights of 16 depth steps with an adapter of 8: give it the first 8.
    eight = write_checkpoint(tmp_path / "eight", CONFIG)
    peer = peer_lm(CONFIG, eight / MODEL_FILE, adapter / "lora.safetensors")
    assert_logits_agree(merged, peer, FRAMES)
    with pytest.raises(AssertionError):
        assert_logits_agree(load(base), peer, 4)


def test_a_checkpoint_may_name_its_adapter(tmp_path: Path, tensors: Tensors) -> None:
    folder = tmp_path / "kyutai"
    folder.mkdir()
    lora = {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING, "lora_name": "my.safetensors"}
    write_kyutai(folder, CONFIG, **lora)
    save_file(tensors, folder / "my.safetensors")
    peer = peer_lm(CONFIG, folder / NAMES["moshi_name"], folder / "my.safetensors")
    assert_logits_agree(load(folder), peer, FRAMES)
    # Another one replaces it.
    other = write_adapter(tmp_path / "other", adapter_tensors(CONFIG, seed=2))
    peer = peer_lm(CONFIG, folder / NAMES["moshi_name"], other / "lora.safetensors")
    assert_logits_agree(load(folder, other), peer, FRAMES)


def test_a_file_of_16_depth_steps_merges_an_adapter_of_16(base: Path, tmp_path: Path) -> None:
    sixteen = write_adapter(tmp_path / "sixteen", adapter_tensors(SIXTEEN))
    peer = peer_lm(SIXTEEN, base / MODEL_FILE, sixteen / "lora.safetensors")
    assert_logits_agree(load(base, sixteen), peer, FRAMES)
    eight = write_checkpoint(tmp_path / "eight", CONFIG)
    assert_same(load(base, sixteen), load(eight, sixteen))


def test_stacked_depth_steps_are_the_same_adapter(
    base: Path, adapter: Path, tensors: Tensors, tmp_path: Path
) -> None:
    """Older adapters stack the depth steps of an attention in one tensor."""
    stacked: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.+\.(?:in|out)_proj)s\.\d+(\.lora_[AB]\.weight)", name)
        stacked.setdefault(name if found is None else found[1] + found[2], []).append(tensor)
    old = write_adapter(tmp_path / "old", {name: torch.cat(t) for name, t in stacked.items()})
    assert len(stacked) < len(tensors)
    assert_same(load(base, old), load(base, adapter))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_low_bit_weights_are_quantised_after_the_merge(
    wide_checkpoint: Path, wide_adapter: Path, tmp_path: Path, quantization: str
) -> None:
    folder = shutil.copytree(wide_checkpoint, tmp_path / "wide")
    plain = load_file(folder / MODEL_FILE)
    gating = "transformer.layers.1.gating.linear_in"
    lora = load_file(wide_adapter / "lora.safetensors")
    merged = plain[f"{gating}.weight"].float() + SCALING * (
        lora[f"{gating}.lora_B.weight"] @ lora[f"{gating}.lora_A.weight"]
    )
    save_file({**plain, f"{gating}.weight": merged}, folder / "merged.safetensors")

    loaded = load(folder, wide_adapter, quantization=quantization)
    found = find_adapter(str(wide_adapter), progress=False)
    save_quantized(folder, tmp_path / "saved", quantization, adapter=found)  # type: ignore[arg-type]
    assert_same(loaded, load(tmp_path / "saved"))

    config = json.loads((folder / "config.json").read_text()) | {"moshi_name": "merged.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    expected = load(folder, quantization=quantization).lm.state_dict()
    layer = "transformer.layers.1.gating.linear_in."
    got = {name: t for name, t in loaded.lm.state_dict().items() if name.startswith(layer)}
    assert got
    for name, tensor in got.items():
        different = (tensor != expected[name]).sum()
        assert different <= 0.001 * tensor.numel(), name  # the last bit of a sum may differ


def test_whole_tensors_replace_those_of_the_checkpoint(
    base: Path, tensors: Tensors, tmp_path: Path
) -> None:
    trained = torch.randn(321, 64)
    folder = write_adapter(tmp_path / "adapter", {**tensors, "text_emb.weight": trained})
    assert torch.equal(load(base, folder).lm.text_emb.weight, trained)


def test_an_adapter_is_found_by_file_folder_and_engine(base: Path, adapter: Path) -> None:
    by_file = find_adapter(str(adapter / "lora.safetensors"), progress=False)
    assert by_file == find_adapter(str(adapter), progress=False)
    assert (by_file.rank, by_file.scaling) == (RANK, SCALING)
    config = EngineConfig(device="cpu", max_sessions=1, adapter=str(adapter))
    assert_same(Engine.load(base, config).checkpoint, load(base, adapter))


def test_without_a_config_the_scaling_is_that_of_moshi(adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.safetensors"
    path.write_bytes((adapter / "lora.safetensors").read_bytes())
    assert find_adapter(str(path), progress=False)[1:] == (None, 2.0)


Change = Callable[[Tensors], object]
GATING = "transformer.layers.0.gating.linear_in"
IN_PROJ = "depformer.layers.0.self_attn.in_projs.2"


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda tensors: tensors.__setitem__(name, torch.zeros(shape, dtype=dtype))


def copy_in_proj(layer: str) -> Change:
    """Give an update of the temporal attention another name as well."""

    def change(tensors: Tensors) -> None:
        for half in "AB":
            update = tensors[f"transformer.layers.0.self_attn.in_projs.0.lora_{half}.weight"]
            tensors[f"{layer}.lora_{half}.weight"] = update.clone()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (copy_in_proj(f"{attention}.self_attn.in_projs.{index}"), "has no place in")
            for attention, index in (
                *(("transformer.layers.0", 3), ("transformer.layers.0", 9)),
                *(("foo", 9), ("transformer.layers.9", 9)),
            )
        ),
        (lambda t: t.pop(f"{GATING}.lora_A.weight"), f"it has no {GATING}.lora_A.weight"),
        (lambda t: t.clear(), "it holds no tensors"),
        (put(f"{GATING}.lora_A.weight", RANK, 63), r"lora_A is \[4, 63\] .* do not fit"),
        (put(f"{GATING}.lora_A.weight", RANK + 1, 64), r"lora_A is \[5, 64\] .* do not fit"),
        (put(f"{GATING}.lora_B.weight", 10, RANK), "do not fit"),
        (put(f"{GATING}.lora_B.weight", 352 * RANK), r"lora_B is \[1408\]"),
        (put(f"{GATING}.lora_B.weight", 0, 0), "do not fit"),
        (put(f"{GATING}.lora_B.weight", 352, 4, dtype=torch.int32), "I32"),
        (put(f"{IN_PROJ}.lora_B.weight", 95, RANK), "do not fit"),
        (put("text_linear.weight", 320, 64), "both whole and as an update"),
        (put("transformer.layers.9.gating.linear_in.lora_A.weight", 4, 64), "has no transformer"),
        (put("text_emb.weight", 5, 64), r"its tensor text_emb.weight is \[5, 64\], expected"),
        (put("base_model.model.q_proj.lora.weight", 4, 4), "has no place in the checkpoint; Kyut"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, tensors: Tensors, tmp_path: Path, change: Change, message: str
) -> None:
    changed = dict(tensors)
    change(changed)
    folder = write_adapter(tmp_path / "adapter", changed)
    with pytest.raises(CheckpointError, match=message) as refused:
        load(base, folder)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_another_size_is_refused(base: Path, wide_adapter: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit .* use it with the checkpoint"):
        load(base, wide_adapter)


def test_a_layer_that_the_checkpoint_lacks_is_refused(
    base: Path, tensors: Tensors, tmp_path: Path
) -> None:
    extra = {
        "transformer.layers.2.gating.linear_in.lora_A.weight": torch.zeros(RANK, 64),
        "transformer.layers.2.gating.linear_in.lora_B.weight": torch.zeros(352, RANK),
    }
    folder = write_adapter(tmp_path / "deep", {**tensors, **extra})
    with pytest.raises(CheckpointError, match=r"its layer transformer\.layers\.2\.gating.* no pl"):
        load(base, folder)


def test_another_rank_than_its_config_says_is_refused(
    base: Path, tensors: Tensors, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", tensors, lora_rank=16)
    with pytest.raises(CheckpointError, match=r"has rank 4, and its config\.json says 16"):
        load(base, folder)


def test_low_bit_weights_take_no_adapter(
    wide_checkpoint: Path, wide_adapter: Path, tmp_path: Path
) -> None:
    save_quantized(wide_checkpoint, tmp_path / "int8", "int8")
    with pytest.raises(ConfigError, match="holds int8 weights, into which no adapter can be"):
        load(tmp_path / "int8", wide_adapter)


def test_weights_that_need_an_adapter_are_not_loaded_without(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kyutai"
    folder.mkdir()
    write_kyutai(folder, CONFIG, lora=True)
    with pytest.raises(ConfigError, match=r"need a LoRA adapter, and names none; .*--adapter"):
        load(folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"lora": False, "lora_name": "my.safetensors"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"names the adapter my\.safetensors and says that lora"):
        load(folder)


@pytest.mark.parametrize("name", ["", "/no/such/file", "lora.safetensors", "a/b/c", "~/x"])
def test_an_adapter_that_does_not_exist(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a file nor a folder, nor a Hugging Face"):
        find_adapter(name or "no", progress=False)


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no lora\.safetensors in it; name the"):
        find_adapter(str(tmp_path), progress=False)


LOAD = """
from pathlib import Path
from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.checkpoint.loader import load_checkpoint

def load(quantization, folder=sys.argv[2]):
    checkpoint = load_checkpoint(
        Path(folder), device=torch.device("cpu"), dtype=torch.float32, quantization=quantization,
        adapter=find_adapter(folder + "-adapter", progress=False),
    )
    return checkpoint.lm, checkpoint.mimi

for quantization in sys.argv[1].split(","):
    load(quantization or None, sys.argv[3])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_merged_weights_are_never_in_memory_twice(tmp_path: Path) -> None:
    large = dataclasses.replace(
        CONFIG, lm=dataclasses.replace(CONFIG.lm, dim=256, num_layers=32, num_heads=8)
    )
    for name, config in (("large", large), ("small", CONFIG)):
        write_checkpoint(tmp_path / name, config)
        write_adapter(tmp_path / f"{name}-adapter", adapter_tensors(config))
    folders = (str(tmp_path / "large"), str(tmp_path / "small"))
    for peak, result in loading_peaks(LOAD, [None, "int8"], *folders):
        assert result > 25e6
        assert peak < 1.4 * result, f"peak {peak / 1e6:.0f} MB of {result / 1e6:.0f} MB"
