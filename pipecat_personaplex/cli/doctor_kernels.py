"""Which kernels work here: the part of ``personaplex doctor`` that compiles and runs them."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from pipecat_personaplex.cli.finding import Finding


def check_kernels() -> Finding:
    """Try the kernels of the first card, or of the processor without one."""
    import torch

    from pipecat_personaplex.kernels import availability
    from pipecat_personaplex.models.config import LMConfig

    lm, bfloat16 = LMConfig(), torch.bfloat16
    if not torch.cuda.is_available():
        return _cpu_kernels(lm.dim // lm.num_heads)
    device = torch.device("cuda", 0)
    verdicts = {
        "ring attention": availability.ring_attention_works(
            device, lm.num_heads, lm.window, lm.dim // lm.num_heads, bfloat16, bfloat16
        ),
        "depth attention": availability.depth_attention_works(device, bfloat16),
        "bfloat16 products": availability.gemm_works(device, None),
        "int8 products": availability.gemm_works(device, "int8"),
        "int4 products": availability.gemm_works(device, "int4"),
    }
    failed = [name for name, works in verdicts.items() if not works]
    if not failed:
        return Finding("kernels", "ok", ", ".join(verdicts))
    return Finding(
        "kernels",
        "note",
        f"not available here: {', '.join(failed)}; PyTorch does the same, more slowly",
        _cure_of_kernels(),
    )


def _cure_of_kernels() -> str:
    if find_spec("triton") is None:
        return "pip install -U triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        # Triton compiles its interface to the driver.
        return "apt install gcc libc6-dev python3-dev"
    return "see the warnings above"


def _cpu_kernels(head_dim: int) -> Finding:
    import torch

    from pipecat_personaplex.kernels import availability
    from pipecat_personaplex.kernels.cpu_library import cpu_library

    try:
        amx = cpu_library().personaplex_amx()
    except RuntimeError as error:
        return Finding(
            "kernels",
            "note",
            f"none for this CPU: {error}; PyTorch runs low-bit weights, more slowly",
            "" if shutil.which("g++") else "apt install g++",
        )
    verdicts = {
        "attention": availability.cpu_attention_works(head_dim, torch.bfloat16),
        "int8 products": availability.cpu_gemm_works("int8"),
        "int4 products": availability.cpu_gemm_works("int4"),
    }
    failed = [name for name, works in verdicts.items() if not works]
    if failed:
        return Finding(
            "kernels",
            "note",
            f"not available on this CPU: {', '.join(failed)}; PyTorch does the same, more slowly",
            "see the warnings above",
        )
    using = "AMX" if amx else "AVX-512 VNNI"
    return Finding("kernels", "ok", f"for this CPU, with {using}: {', '.join(verdicts)}")
