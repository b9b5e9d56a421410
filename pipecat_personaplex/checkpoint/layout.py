"""The tensor of a checkpoint's file that each parameter is read from.

Names and shapes are those of ``nvidia/personaplex-7b-v1``. The release's modules are
arranged for training, the modules of this package for inference; only this file knows both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.models.config import LMConfig, MimiConfig
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.models.mimi.conv import CausalConv, CausalConvTranspose

DEPTH_STACK = "depformer.layers.0.self_attn.out_proj.weight"
"""A tensor stacked over the depth steps: its height gives the number of steps in a file."""
SPLIT_DEPTH = "depformer.layers.0.self_attn.out_projs.{}.weight"
"""The same tensor in a file with one for each step; see ``AttentionLayer``."""

# Tensors that are not read: depth steps that predict the user's codes, and codebooks of the codec
# past the eighth.
_UNUSED = re.compile(
    r"(depformer_in|depformer_emb|linears)\.\d+\.weight"
    r"|depformer\.layers\.\d+\.gating\.\d+\.linear_(in|out)\.weight"
    r"|depformer\.layers\.\d+\.self_attn\.(in|out)_projs\.\d+\.weight"
    r"|quantizer\.rvq_(first|rest)\.vq\.layers\.\d+\._codebook\.\w+"
)


_ATTENTION = re.compile(r"(.+\.self_attn)\.(in|out)_proj(?:s\.(\d{1,4}))?")
_STACKED = re.compile(r"depformer\.layers\.\d+\.self_attn\.(in_proj_|out_proj\.)weight")


class AttentionLayer(NamedTuple):
    """A projection of an attention. Its weights have two layouts: one tensor or one for each step.

    The release has one tensor, in the depth transformer stacked over the steps. ``moshi`` writes
    one for each step, and for the temporal transformer one with the index 0.

    Attributes:
        attention: Name of the attention module.
        side: ``"in"`` or ``"out"``.
        step: The step; None for one tensor.
    """

    attention: str
    side: str
    step: int | None

    @classmethod
    def of(cls, name: str) -> AttentionLayer | None:
        """The projection that a layer's name, without ``.weight``, is; None if it is no such."""
        match = _ATTENTION.fullmatch(name)
        if match is None:
            return None
        return cls(match[1], match[2], None if match[3] is None else int(match[3]))

    @property
    def stacked(self) -> str:
        """Name of the one tensor."""
        return f"{self.attention}.{'in_proj_weight' if self.side == 'in' else 'out_proj.weight'}"

    def split(self, step: int) -> str:
        """Name of the tensor of one step."""
        return f"{self.attention}.{self.side}_projs.{step}.weight"


class Entry(NamedTuple):
    """One tensor of a file, or some of its rows, and the parameter that it fills.

    Attributes:
        target: Name of the parameter in our module.
        name: Name of the tensor in the file.
        shape: Shape of the tensor in the file.
        rows: First and end row of the part that is read; None reads all rows.
        into: First row of the parameter to fill, if several tensors fill one parameter.
        usage: Name of the tensor [shape[0]] to divide the rows by (a codebook's usage counts).
        axes: Permutation of the tensor's axes that gives the parameter; None for no permutation.
    """

    target: str
    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    into: int = 0
    usage: str | None = None
    axes: tuple[int, ...] | None = None


class _Shapes:
    """Builds entries whose shapes follow from the shapes of a module's parameters."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def __getitem__(self, target: str) -> tuple[int, ...]:
        return self._shapes[target]

    def same(self, target: str, name: str | None = None) -> Entry:
        """A tensor with the parameter's shape, and with its name unless ``name`` is given."""
        return Entry(target, name or target, self[target])

    def norm(self, target: str, name: str | None = None) -> Entry:
        """The weights of an RMSNorm, stored as [1, 1, dim]."""
        return Entry(target, name or target, (1, 1, *self[target]))

    def conv(self, target: str, name: str) -> Entry:
        """A convolution's kernel, of rank 3; the parameter is a matrix with the channels last."""
        conv = self._model.get_submodule(target)
        rows, columns = self[f"{target}.taps.weight"]
        if isinstance(conv, CausalConvTranspose):
            shape, axes = (columns, conv.out_channels, 2 * conv.stride), (2, 1, 0)
        else:
            assert isinstance(conv, CausalConv)
            shape, axes = (rows, columns // conv.kernel, conv.kernel), (0, 2, 1)
        return Entry(f"{target}.taps.weight", name, shape, axes=axes)

    def stacked(self, target: str, name: str, step: int, steps: int) -> Entry:
        """The rows of one depth step in a tensor stacked over ``steps`` depth steps."""
        height, width = self[target]
        return Entry(
            target, name, (steps * height, width), rows=(step * height, (step + 1) * height)
        )


def lm_layout(model: PersonaPlexLM, steps: int, *, split: bool = False) -> list[Entry]:
    """Entries for every parameter of the language model.

    Args:
        model: Gives the shapes; its parameters may be on the meta device.
        steps: Depth steps in the file, 8 or 16. The first eight are read.
        split: Whether the file has one tensor for each step of an attention; see
            ``AttentionLayer``.
    """
    entries = _lm(_Shapes(model), model.config, steps)
    return [_split(entry) for entry in entries] if split else list(entries)


def _split(entry: Entry) -> Entry:
    """The entry of the same parameter in a file with one tensor for each step."""
    layer = AttentionLayer.of(entry.name.replace("_weight", ".weight").removesuffix(".weight"))
    if layer is None:
        return entry
    if entry.rows is None:
        return entry._replace(name=layer.split(0))
    start, stop = entry.rows
    height = stop - start
    return entry._replace(
        name=layer.split(start // height), shape=(height, *entry.shape[1:]), rows=None
    )


def is_split(names: Collection[str]) -> bool:
    """Whether a file of these tensors has one tensor for each step of an attention."""
    return SPLIT_DEPTH.format(0) in names


def _lm(shapes: _Shapes, config: LMConfig, steps: int) -> Iterator[Entry]:
    table = config.card + 1
    yield shapes.same("text_emb.weight")
    for stream in range(2 * CODEBOOKS):
        yield Entry(
            "audio_emb.weight", f"emb.{stream}.weight", (table, config.dim), into=stream * table
        )
    for index in range(config.num_layers):
        layer = f"transformer.layers.{index}"
        yield shapes.norm(f"{layer}.norm1.alpha")
        yield shapes.norm(f"{layer}.norm2.alpha")
        yield from _attention(shapes, layer, layer)
        yield shapes.same(f"{layer}.gating.linear_in.weight")
        yield shapes.same(f"{layer}.gating.linear_out.weight")
    yield shapes.norm("out_norm.alpha")
    yield shapes.same("text_linear.weight")
    yield from _depth(shapes, config.depformer_num_layers, steps)


def _attention(shapes: _Shapes, ours: str, theirs: str) -> Iterator[Entry]:
    yield shapes.same(f"{ours}.self_attn.in_proj.weight", f"{theirs}.self_attn.in_proj_weight")
    yield shapes.same(f"{ours}.self_attn.out_proj.weight", f"{theirs}.self_attn.out_proj.weight")


def _depth(shapes: _Shapes, num_layers: int, steps: int) -> Iterator[Entry]:
    yield shapes.same("depth.text_emb.weight", "depformer_text_emb.weight")
    for step in range(CODEBOOKS):
        yield shapes.same(f"depth.inputs.{step}.weight", f"depformer_in.{step}.weight")
        yield shapes.same(f"depth.heads.{step}.weight", f"linears.{step}.weight")
    for step in range(CODEBOOKS - 1):
        yield shapes.same(f"depth.emb.{step}.weight", f"depformer_emb.{step}.weight")
    for index in range(num_layers):
        ours, theirs = f"depth.layers.{index}", f"depformer.layers.{index}"
        yield shapes.norm(f"{ours}.norm1.alpha", f"{theirs}.norm1.alpha")
        yield shapes.norm(f"{ours}.norm2.alpha", f"{theirs}.norm2.alpha")
        for step in range(CODEBOOKS):
            attention = f"{ours}.self_attn.{step}"
            yield shapes.stacked(
                f"{attention}.in_proj.weight", f"{theirs}.self_attn.in_proj_weight", step, steps
            )
            yield shapes.stacked(
                f"{attention}.out_proj.weight", f"{theirs}.self_attn.out_proj.weight", step, steps
            )
            for part in ("linear_in", "linear_out"):
                tail = f"gating.{step}.{part}.weight"
                yield shapes.same(f"{ours}.{tail}", f"{theirs}.{tail}")


def mimi_layout(model: Mimi) -> list[Entry]:
    """Entries for every parameter of the codec; eight codebooks of the file are read."""
    return list(_mimi(_Shapes(model), model.config))


def _mimi(shapes: _Shapes, config: MimiConfig) -> Iterator[Entry]:
    stages = len(config.ratios)
    yield from _seanet(shapes, "encoder", _encoder_order(stages))
    yield from _seanet(shapes, "decoder", _decoder_order(stages))
    for side in ("encoder_transformer", "decoder_transformer"):
        for index in range(config.num_layers):
            yield from _codec_layer(
                shapes, f"{side}.layers.{index}", f"{side}.transformer.layers.{index}"
            )
    yield shapes.conv("downsample.conv", "downsample.conv.conv.conv.weight")
    taps, dim = shapes["upsample.weight"]
    yield Entry(
        "upsample.weight", "upsample.convtr.convtr.convtr.weight", (dim, 1, taps), axes=(2, 1, 0)
    )
    for ours, theirs in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        yield from _codebooks(shapes, f"quantizer.{ours}", f"quantizer.{theirs}")


def _encoder_order(stages: int) -> Iterator[tuple[int, str, str]]:
    """(index in the release's Sequential, our name, kind); activations have the other indices."""
    yield 0, "first", "conv"
    for stage in range(stages):
        yield 1 + 3 * stage, f"blocks.{stage}", "block"
        yield 3 + 3 * stage, f"downs.{stage}", "conv"
    yield 2 + 3 * stages, "last", "conv"


def _decoder_order(stages: int) -> Iterator[tuple[int, str, str]]:
    yield 0, "first", "conv"
    for stage in range(stages):
        yield 2 + 3 * stage, f"ups.{stage}", "convtr"
        yield 3 + 3 * stage, f"blocks.{stage}", "block"
    yield 2 + 3 * stages, "last", "conv"


def _seanet(shapes: _Shapes, side: str, order: Iterator[tuple[int, str, str]]) -> Iterator[Entry]:
    for index, ours, kind in order:
        theirs = f"{side}.model.{index}"
        if kind == "block":
            parts = [("narrow", "block.1.conv.conv"), ("widen", "block.3.conv.conv")]
        else:
            parts = [("", f"{kind}.{kind}")]
        for part, tail in parts:
            target = ".".join(filter(None, (side, ours, part)))
            yield shapes.conv(target, f"{theirs}.{tail}.weight")
            yield shapes.same(f"{target}.bias", f"{theirs}.{tail}.bias")


def _codec_layer(shapes: _Shapes, ours: str, theirs: str) -> Iterator[Entry]:
    yield from _attention(shapes, ours, theirs)
    for branch in (1, 2):
        yield shapes.same(f"{ours}.norm{branch}.weight", f"{theirs}.norm{branch}.weight")
        yield shapes.same(f"{ours}.norm{branch}.bias", f"{theirs}.norm{branch}.bias")
        yield shapes.same(f"{ours}.scale{branch}", f"{theirs}.layer_scale_{branch}.scale")
        yield shapes.same(f"{ours}.linear{branch}.weight", f"{theirs}.linear{branch}.weight")


def _codebooks(shapes: _Shapes, ours: str, theirs: str) -> Iterator[Entry]:
    for side in ("input_proj", "output_proj"):
        # Stored as a convolution with kernel size 1: one more axis.
        yield Entry(f"{ours}.{side}", f"{theirs}.{side}.weight", (*shapes[f"{ours}.{side}"], 1))
    count, bins, dim = shapes[f"{ours}.centroids"]
    for index in range(count):
        book = f"{theirs}.vq.layers.{index}._codebook"
        yield Entry(
            f"{ours}.centroids",
            f"{book}.embedding_sum",
            (bins, dim),
            into=index,
            usage=f"{book}.cluster_usage",
        )


def scale_name(name: str) -> str:
    """Name of the tensor with the scales of a low-bit tensor."""
    return f"{name}.scale"


def is_unused(name: str) -> bool:
    """Whether a file may have this tensor although no parameter is read from it."""
    return _UNUSED.fullmatch(name) is not None


def is_depth_stack(name: str) -> bool:
    """Whether a tensor stacks the weights of the depth steps."""
    return _STACKED.fullmatch(name) is not None


def unknown_tensor(
    layout: Sequence[Entry], names: Iterable[str], low_bit: bool = False
) -> str | None:
    """The first tensor of a file that is neither read nor known to be unused; None if all are.

    Without this check, a layer more than configured or an unexpected bias would be ignored
    silently.

    Args:
        layout: The entries of the model.
        names: Names of the tensors in the file.
        low_bit: Whether the file also has scales.
    """
    read = {entry.name for entry in layout} | {entry.usage for entry in layout}
    if low_bit:
        read |= {scale_name(entry.name) for entry in layout}
    unread = sorted(name for name in names if name not in read and not is_unused(name))
    return unread[0] if unread else None
