"""Small checkpoints in the release's layout, written for a test."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipecat_personaplex.models.config import LMConfig, MimiConfig, ModelConfig
from tests.golden_data import CHECKPOINT

MODEL_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"

SMALL_MIMI = MimiConfig(
    dimension=32,
    n_filters=4,
    num_heads=4,
    num_layers=2,
    dim_feedforward=64,
    context=20,
    codebook_dim=16,
)

# Weights that are large enough to be packed, and to be quantised if requested.
WIDE = ModelConfig(
    lm=LMConfig(
        dim=256,
        num_layers=2,
        num_heads=4,
        context=40,
        text_card=320,
        dep_q=8,
        depformer_dim=256,
        depformer_dim_feedforward=1056,
        depformer_num_heads=4,
        depformer_num_layers=1,
    ),
    mimi=SMALL_MIMI,
)

Tensors = dict[str, Tensor]


def copy_tiny(folder: Path) -> Path:
    """A copy of the golden checkpoint for a test to modify."""
    return Path(shutil.copytree(CHECKPOINT, folder / "checkpoint"))


def edit(file: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def write_checkpoint(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """Write random models of this architecture, with ``lm.dep_q`` depth steps.

    Weights depend only on their names, so files of 8 and of 16 depth steps share the first eight.
    """
    folder.mkdir(parents=True)
    save_file(
        {n: _noise(n, s, seed).bfloat16() for n, s in lm_shapes(config.lm).items()},
        folder / MODEL_FILE,
    )
    save_file(
        {n: _noise(n, s, seed) for n, s in mimi_shapes(config.mimi).items()}, folder / MIMI_FILE
    )
    shutil.copy(CHECKPOINT / TOKENIZER_FILE, folder)
    shutil.copy(CHECKPOINT / "voices.tgz", folder)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    return folder


def config_json(config: ModelConfig) -> dict[str, object]:
    """The content of ``config.json`` for this architecture."""
    mimi = config.mimi
    seanet = ("dimension", "n_filters", "kernel_size", "residual_kernel_size", "last_kernel_size")
    transformer = ("num_heads", "num_layers", "dim_feedforward", "context")
    return {
        "lm": dataclasses.asdict(config.lm),
        "mimi": {
            "seanet": {key: getattr(mimi, key) for key in (*seanet, "compress")},
            "transformer": {key: getattr(mimi, key) for key in transformer},
            "quantizer": {"dimension": mimi.codebook_dim, "bins": mimi.bins},
        },
    }


def lm_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the language model's tensors in the release's layout."""
    dim, depth, steps, table = config.dim, config.depformer_dim, config.dep_q, config.card + 1
    shapes: dict[str, tuple[int, ...]] = {
        "text_emb.weight": (config.text_card + 1, dim),
        "out_norm.alpha": (1, 1, dim),
        "text_linear.weight": (config.text_card, dim),
        "depformer_text_emb.weight": (config.text_card + 1, depth),
    }
    shapes |= {f"emb.{k}.weight": (table, dim) for k in range(16)}
    shapes |= {f"depformer_in.{k}.weight": (depth, dim) for k in range(steps)}
    shapes |= {f"linears.{k}.weight": (config.card, depth) for k in range(steps)}
    shapes |= {f"depformer_emb.{k}.weight": (table, depth) for k in range(steps - 1)}
    for index in range(config.num_layers):
        layer = f"transformer.layers.{index}"
        shapes |= {
            f"{layer}.norm1.alpha": (1, 1, dim),
            f"{layer}.norm2.alpha": (1, 1, dim),
            f"{layer}.self_attn.in_proj_weight": (3 * dim, dim),
            f"{layer}.self_attn.out_proj.weight": (dim, dim),
            f"{layer}.gating.linear_in.weight": (2 * config.hidden, dim),
            f"{layer}.gating.linear_out.weight": (dim, config.hidden),
        }
    for index in range(config.depformer_num_layers):
        layer = f"depformer.layers.{index}"
        shapes |= {
            f"{layer}.norm1.alpha": (1, 1, depth),
            f"{layer}.norm2.alpha": (1, 1, depth),
            f"{layer}.self_attn.in_proj_weight": (steps * 3 * depth, depth),
            f"{layer}.self_attn.out_proj.weight": (steps * depth, depth),
        }
        for k in range(steps):
            gating = f"{layer}.gating.{k}"
            shapes[f"{gating}.linear_in.weight"] = (2 * config.depformer_hidden, depth)
            shapes[f"{gating}.linear_out.weight"] = (depth, config.depformer_hidden)
    return shapes


def mimi_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the codec's tensors, for the release's four stages."""
    dim, width = config.dimension, config.n_filters
    shapes: dict[str, tuple[int, ...]] = {
        "downsample.conv.conv.conv.weight": (dim, dim, 4),
        "upsample.convtr.convtr.convtr.weight": (dim, 1, 4),
    }

    def conv(name: str, channels: int, weight: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (channels,)

    def block(name: str, channels: int) -> None:
        inner = channels // config.compress
        conv(f"{name}.block.1.conv.conv", inner, (inner, channels, config.residual_kernel_size))
        conv(f"{name}.block.3.conv.conv", channels, (channels, inner, 1))

    conv("encoder.model.0.conv.conv", width, (width, 1, config.kernel_size))
    for index, ratio in zip((1, 4, 7, 10), reversed(config.ratios), strict=True):
        block(f"encoder.model.{index}", width)
        down = f"encoder.model.{index + 2}.conv.conv"
        conv(down, 2 * width, (2 * width, width, 2 * ratio))
        width *= 2
    conv("encoder.model.14.conv.conv", dim, (dim, width, config.last_kernel_size))
    conv("decoder.model.0.conv.conv", width, (width, dim, config.kernel_size))
    for index, ratio in zip((2, 5, 8, 11), config.ratios, strict=True):
        up = f"decoder.model.{index}.convtr.convtr"
        conv(up, width // 2, (width, width // 2, 2 * ratio))
        width //= 2
        block(f"decoder.model.{index + 1}", width)
    conv("decoder.model.14.conv.conv", 1, (1, width, config.last_kernel_size))

    for side in ("encoder", "decoder"):
        for index in range(config.num_layers):
            layer = f"{side}_transformer.transformer.layers.{index}"
            shapes |= {
                f"{layer}.self_attn.in_proj_weight": (3 * dim, dim),
                f"{layer}.self_attn.out_proj.weight": (dim, dim),
                f"{layer}.linear1.weight": (config.dim_feedforward, dim),
                f"{layer}.linear2.weight": (dim, config.dim_feedforward),
            }
            for branch in "12":
                shapes[f"{layer}.norm{branch}.weight"] = (dim,)
                shapes[f"{layer}.norm{branch}.bias"] = (dim,)
                shapes[f"{layer}.layer_scale_{branch}.scale"] = (dim,)
    for group, count in (("rvq_first", 1), ("rvq_rest", 9)):
        shapes[f"quantizer.{group}.input_proj.weight"] = (config.codebook_dim, dim, 1)
        shapes[f"quantizer.{group}.output_proj.weight"] = (dim, config.codebook_dim, 1)
        for index in range(count):
            book = f"quantizer.{group}.vq.layers.{index}._codebook"
            shapes[f"{book}._initialized"] = (1,)
            shapes[f"{book}.cluster_usage"] = (config.bins,)
            shapes[f"{book}.embedding_sum"] = (config.bins, config.codebook_dim)
    return shapes


def _noise(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise for a tensor; the first rows do not depend on the number of rows."""
    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)) % 1000)
    if name.endswith("alpha") or ".norm" in name or name.endswith("cluster_usage"):
        return torch.rand(shape, generator=generator) + 0.5
    # Generated row by row, so that a stack of 8 depth steps starts like a stack of 16.
    noise = torch.randn(shape[0], *shape[1:], generator=generator)
    # The scale keeps the size of activations through any number of layers.
    return noise * 0.05 if len(shape) == 1 else noise / math.prod(shape[1:]) ** 0.5


def preset(frames: int = 6) -> Tensors:
    """A voice file's content, for a model of dimension 64: a voice of ``frames + 1`` frames."""
    return {
        "embeddings": torch.randn(frames, 1, 1, 64, generator=torch.Generator().manual_seed(0)),
        "cache": torch.full((1, 17, 4), 3),
    }


def pt(content: object) -> bytes:
    """The bytes of a ``.pt`` file with this content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def weight_of(layer: nn.Module, inputs: int) -> Tensor:
    """The weight of a linear layer, packed or not: its product with the unit matrix."""
    product: Tensor = layer(torch.eye(inputs)).T
    return product
