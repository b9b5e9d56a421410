"""Compile the sampling kernels for other GPUs; run by ``test_compile_sampling``.

This needs a separate process: Triton's interpreter and compiler exclude each other.
"""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipecat_personaplex.kernels import topk_sampling as sampling

_TYPES = {
    "shortlist": "*i64",
    "tokens": "*i64",
    "seeds": "*i64",
    "frames": "*i64",
    "scales": "*fp32",
    "noise_scales": "*fp32",
    "top_ks": "*i64",
}
_AUDIO = {"CARD": 2_048, "LISTED": 0, "PADDED": 2_048, "WIDTH": 256}
_TEXT = {"CARD": 32_000, "LISTED": 4_096, "PADDED": 4_096, "WIDTH": 256}
_PART = {"CARD": 32_000, "PART": sampling.PART, "WIDTH": 256}


def report(name: str, capability: int, logits: str, sizes: dict[str, int]) -> dict[str, object]:
    """Properties of a compiled kernel."""
    kernel = getattr(sampling, name)
    names = kernel.arg_names
    types = {**_TYPES, "logits": logits, **dict.fromkeys(sizes, "constexpr")}
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature={name: types.get(name, "i32") for name in names},
            constexprs={(names.index(name),): size for name, size in sizes.items()},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": sampling.SAMPLE_WARPS},
    )
    return {
        "kernel": name,
        "capability": capability,
        "logits": logits,
        "card": sizes["CARD"],
        "shared_bytes": compiled.metadata.shared,
        "local_memory": ".local" in compiled.asm["ptx"],
        "approximate_logarithm": "lg2.approx" in compiled.asm["ptx"],
    }


def main() -> None:
    """Print a line of JSON for each kernel, GPU and type of logits."""
    for capability, logits in ((80, "*fp32"), (100, "*bf16")):
        print(json.dumps(report("_sample", capability, logits, _AUDIO)))
    for name, sizes in (("_shortlist", _PART), ("_sample", _TEXT)):
        print(json.dumps(report(name, 90, "*fp32", sizes)))


if __name__ == "__main__":
    main()
