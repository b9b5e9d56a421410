"""Compile the draw for GPUs that need not be there; run by ``test_compile_sampling``.

In a process of its own, since Triton's interpreter and its compiler exclude each other.
"""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipecat_personaplex.kernels import sampling

_POINTERS = {
    "codes": "*i64",
    "seeds": "*i64",
    "frames": "*i64",
    "scales": "*fp32",
    "noise_scales": "*fp32",
    "top_ks": "*i64",
}
_SIZES = {"CARD": 2048, "PADDED": 2048, "WIDTH": 256}


def main() -> None:
    """Print a line of JSON for each card and type of logits."""
    kernel = sampling._draw
    names = kernel.arg_names
    for capability, logits in ((80, "*fp32"), (90, "*bf16"), (100, "*fp32")):
        types = {**_POINTERS, "logits": logits, **dict.fromkeys(_SIZES, "constexpr")}
        compiled = triton.compile(
            ASTSource(
                fn=kernel,
                signature={name: types.get(name, "i32") for name in names},
                constexprs={(names.index(name),): size for name, size in _SIZES.items()},
            ),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 8},
        )
        report = {
            "capability": capability,
            "logits": logits,
            "shared_bytes": compiled.metadata.shared,
            "local_memory": ".local" in compiled.asm["ptx"],
            "approximate_logarithm": "lg2.approx" in compiled.asm["ptx"],
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
