"""Compile the ring attention kernels for other GPUs; run by ``test_compile_ring_attention``.

This needs a separate process: Triton's interpreter and compiler exclude each other.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipecat_personaplex.kernels import ring_attention
from pipecat_personaplex.kernels.ring_ops import RingPlan

_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float8_e4m3fn: "*fp8e4nv"}
_TYPES = {
    "slots": "*i64",
    "positions": "*i64",
    "sums": "*fp32",
    "tops": "*fp32",
    "totals": "*fp32",
    "key_scales": "*fp32",
    "value_scales": "*fp32",
    "scale": "fp32",
    "cos": "*fp32",
    "sin": "*fp32",
}
# The engine's strides are multiples of 16, which lets the compiler use wide loads.
_STRIDES = ("row", "head", "step")


def compile_kernel(
    kernel: Any, target: GPUTarget, warps: int, types: dict[str, str], constants: dict[str, Any]
) -> Any:
    signature = {}
    aligned = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = (types | _TYPES).get(name, "i32")
        if signature[name].startswith("*") or name.endswith(_STRIDES):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    return triton.compile(source, target=target, options={"num_warps": warps})


def report(
    capability: int, heads: int, window: int, head_dim: int, dtype: Any, kv_dtype: Any
) -> dict[str, Any]:
    """Properties of the compiled kernels for one kind of ring."""
    target = GPUTarget("cuda", capability, 32)
    plan = RingPlan.of(heads, window, head_dim, kv_dtype)
    quantized = kv_dtype == torch.float8_e4m3fn
    shape: dict[str, Any] = {
        "HEADS": heads,
        "WINDOW": window,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": triton.next_power_of_2(head_dim),
    }
    split = shape | {"BLOCK": plan.block, "SPLITS": plan.splits}
    kind: dict[str, Any] = {"QUANTIZED": quantized, "ROTATE": True}
    if not quantized:
        kind |= {"key_scales": None, "value_scales": None}
    x, stored = _NAMES[dtype], _NAMES[kv_dtype]
    bits = "*u8" if quantized else stored
    split_kernel = compile_kernel(
        ring_attention._attend_split,
        target,
        ring_attention.SPLIT_WARPS,
        {
            "q": x,
            "k": x,
            "v": x,
            "keys": stored,
            "values": stored,
            "key_bits": bits,
            "value_bits": bits,
        },
        split | kind,
    )
    compile_kernel(
        ring_attention._merge,
        target,
        ring_attention.MERGE_WARPS,
        {"out": x},
        split | {"BLOCK_SPLITS": triton.next_power_of_2(plan.splits)},
    )
    loop = split_kernel.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    return {
        "shared_bytes": split_kernel.metadata.shared,
        "copies": sorted(
            set(re.findall(r"cp\.async\.c\w\.shared\.global.*?(0x\w+)", split_kernel.asm["ptx"]))
        ),
        "layout_changes_in_loop": loop.count("convert_layout"),
    }


def main() -> None:
    f32, bf16, fp8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
    released, small = (32, 2_999, 128, bf16, bf16), (32, 2_999, 128, bf16, fp8)
    codec, odd = (8, 249, 64, f32, f32), (3, 47, 20, bf16, f32)
    cards = {80: (released, codec), 89: (small,), 90: (released, small, odd), 100: (small, codec)}
    for capability, kinds in cards.items():
        for kind in kinds:
            compiled = report(capability, *kind)
            print(json.dumps({"capability": capability, "kind": str(kind), **compiled}))


if __name__ == "__main__":
    main()
