"""Compile the attention kernels for GPUs that need not be there; run by ``test_compile``.

In a process of its own, since Triton's interpreter and its compiler exclude each other.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipecat_personaplex.kernels import ring_attention as attention
from pipecat_personaplex.kernels import ring_ops as rings

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
# Multiples of 16 wherever the engine runs them, which is what lets loads be wide.
_STRIDES = ("row", "head", "step")


def compile_kernel(
    kernel: Any, target: GPUTarget, warps: int, types: dict[str, str], constants: dict[str, Any]
) -> Any:
    signature = {}
    aligned = {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = (types | _TYPES).get(name, "i32")
        if signature[name].startswith("*") or name.endswith(_STRIDES):
            aligned[(place,)] = [["tt.divisibility", 16]]
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
    """What the compiler made of the kernels for one kind of ring."""
    target = GPUTarget("cuda", capability, 32)
    plan = rings.Plan.of(heads, window, head_dim, kv_dtype)
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
    x, kept = _NAMES[dtype], _NAMES[kv_dtype]
    bits = "*u8" if quantized else kept
    part = compile_kernel(
        attention._attend_part,
        target,
        attention.PART_WARPS,
        {
            "q": x,
            "k": x,
            "v": x,
            "keys": kept,
            "values": kept,
            "key_bits": bits,
            "value_bits": bits,
        },
        split | kind,
    )
    compile_kernel(
        attention._merge,
        target,
        attention.MERGE_WARPS,
        {"out": x},
        split | {"BLOCK_SPLITS": triton.next_power_of_2(plan.splits)},
    )
    loop = part.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    return {
        "shared_bytes": part.metadata.shared,
        "copies": sorted(
            set(re.findall(r"cp\.async\.c\w\.shared\.global.*?(0x\w+)", part.asm["ptx"]))
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
            said = report(capability, *kind)
            print(json.dumps({"capability": capability, "kind": str(kind), **said}))


if __name__ == "__main__":
    main()
