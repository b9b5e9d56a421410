"""Compile the GEMM and depth kernels for other GPUs; run by ``test_compile_gemm``.

This needs a separate process: Triton's interpreter and compiler exclude each other.
"""

from __future__ import annotations

import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipecat_personaplex.config import QUANTIZATIONS, Quantization
from pipecat_personaplex.kernels import depth_attention, gemm

_WEIGHTS = {None: "*bf16", "int8": "*i8", "fp8": "*fp8e4nv", "int4": "*u8"}
_SCALES = {None: "*bf16", "int8": "*bf16", "fp8": "*fp32", "int4": "*bf16"}
# The engine's values are multiples of 16, which lets the compiler use wide loads.
_ALIGNED = ("stride", "outputs")
# (rows, outputs, inner): a step's projection with a residual, a larger step's MLP with norm and
# gate, and a prompt.
_STEP, _LARGE_STEP, _PROMPT = (1, 4096, 4096), (33, 11264, 4096), (256, 4096, 11264)
_CARDS: dict[int, tuple[Quantization | None, ...]] = {
    80: (None, "int8", "int4"),
    89: ("int8", "fp8"),
    90: (None, *QUANTIZATIONS),
    100: (None, "fp8", "int4"),
}


def compile_kernel(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], **options: int
) -> Any:
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = types.get(name, "i32")
        if signature[name].startswith("*") or name.endswith(_ALIGNED):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def report(
    capability: int, format: Quantization | None, shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Properties of the compiled kernel of one product."""
    rows, outputs, inner = shape
    gate, prompt = shape == _LARGE_STEP, shape == _PROMPT
    kind = gemm._KINDS[format]
    plan = gemm._plan(rows, outputs, kind, 2 if format is None else 1, 2 if gate else 1, prompt)
    pointers = dict.fromkeys(("x", "alpha", "residual", "y"), "*bf16")
    compiled = compile_kernel(
        gemm._gemm,
        capability,
        pointers | {"weight": _WEIGHTS[format], "scale": _SCALES[format], "eps": "fp32"},
        {
            "INNER": inner,
            "KIND": kind,
            "NORM": gate,
            "GATE": gate,
            "RESIDUAL": not gate,
            "EVEN": inner % plan.inner == 0,
            "WIDE": False,
            "BLOCK_M": plan.rows,
            "BLOCK_N": plan.outputs,
            "BLOCK_K": plan.inner,
        },
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    ptx = compiled.asm["ptx"]
    return {
        "shared_bytes": compiled.metadata.shared,
        "copies": sorted(set(re.findall(r"cp\.async\.c\w\.shared\.global.*?(0x\w+)", ptx))),
        "products": sorted(set(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx))),
        "spills": ".local" in ptx,
    }


def main() -> None:
    for capability, formats in _CARDS.items():
        for format in formats:
            for shape in (_STEP, _LARGE_STEP, _PROMPT):
                compiled = report(capability, format, shape)
                kind = {"capability": capability, "format": format, "rows": shape[0]}
                print(json.dumps(kind | compiled), flush=True)
        compile_kernel(
            depth_attention._attend,
            capability,
            dict.fromkeys(("q", "k", "v", "keys", "values", "y"), "*bf16") | {"scale": "fp32"},
            {"STEPS": 8, "DIM": 64, "PADDED": 64},
            num_warps=1,
        )


if __name__ == "__main__":
    main()
