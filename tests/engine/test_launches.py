"""The launches of a captured step of the 7B model, counted on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipecat_personaplex.engine import kv_cache
from pipecat_personaplex.engine.cuda_graphs import batch_sizes
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.models import depth
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from tests.helpers.recording import no_host_reads, tensors

META = torch.device("meta")
CALLERS = 24


class Launches(TorchDispatchMode):
    """Counts PyTorch operations that launch a kernel; fails on tensors of another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        assert_on_device(func, (args, kwargs, result))
        self.count += not (func.is_view or "empty" in func._schema.name)
        return result


class Kernel:
    """Replaces a Triton kernel: checks and counts its launches."""

    def __init__(self, name: str, arguments: list[str], launches: Counter[str]):
        self._name, self._arguments, self._launches = name, arguments, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(extent > 0 for extent in grid) and max(grid[1:], default=1) < 1 << 16
        return self._launch

    def _launch(self, *given: object, **named: object) -> None:
        arguments = dict(zip(self._arguments, given, strict=False)) | named
        assert set(arguments) - {"num_warps", "num_stages"} == set(self._arguments)
        assert_on_device(self._name, arguments)
        self._launches[self._name] += 1


def assert_on_device(what: object, tree: object) -> None:
    for tensor in tensors(tree):
        assert tensor.device == META, f"{what} uses a tensor on {tensor.device}"


def new_runner(*, kernels: bool) -> ModelRunner:
    config = ModelConfig()
    with META:
        lm, mimi = PersonaPlexLM(config.lm).bfloat16(), Mimi(config.mimi)
    lm.reset_constants(META)
    mimi.reset_constants(META)
    if kernels:
        for module in lm.modules():
            if isinstance(module, Linear):
                module.kernel = True
        lm.depth.use_kernels()
    runner = ModelRunner(config, lm, mimi, CALLERS, META, fixed=True)
    runner.frame_step.sampler._fused = kernels
    return runner


def step(runner: ModelRunner, size: int) -> int:
    """Run a step of ``size`` rows that reads nothing on the host; return PyTorch's launches."""
    assert runner._fixed is not None
    with Launches() as launches, no_host_reads():
        runner._fixed._run(size, runner.frame_step.sampler.fixed_counts)
    return launches.count


def test_a_step_without_kernels_reads_nothing_on_the_host() -> None:
    runner = new_runner(kernels=False)
    smallest, *_, largest = batch_sizes(CALLERS)
    for size in (smallest, largest):
        assert step(runner, size) > 1_000


@pytest.fixture
def triton_launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts launches by kernel; every kernel is assumed to work."""
    pytest.importorskip("triton")
    from pipecat_personaplex.kernels import depth_attention as frame_attention
    from pipecat_personaplex.kernels import gemm
    from pipecat_personaplex.kernels import ring_attention as attention
    from pipecat_personaplex.kernels import ring_ops as rings
    from pipecat_personaplex.kernels import topk_sampling as sampling

    launches: Counter[str] = Counter()
    for module in (attention, frame_attention, gemm, rings, sampling):
        for name, kernel in list(vars(module).items()):
            if hasattr(kernel, "arg_names"):
                monkeypatch.setattr(module, name, Kernel(name, kernel.arg_names, launches))
    monkeypatch.setattr(kv_cache, "ring_attention_works", lambda *shape: True)
    monkeypatch.setattr(depth, "depth_attention_works", lambda device, dtype: True)
    return launches


def test_a_step_with_kernels_takes_fewer_than_a_thousand_launches(
    triton_launches: Counter[str],
) -> None:
    """Every launch adds its overhead to every frame of every session."""
    runner = new_runner(kernels=True)
    layers, codec_layers = 32, 2 * 8
    for size in batch_sizes(CALLERS):
        triton_launches.clear()
        # Forced text takes six: two of a sample, and four that let it wait for a word.
        assert step(runner, size) < 420
        assert triton_launches == {
            # Two attention and two MLP products in each temporal layer and, for each of 8 codes,
            # in each of 6 depth layers; the text head, 8 audio heads, and one product that gives
            # the inputs of all depth steps.
            "_gemm": 4 * layers + 8 * 6 * 4 + 1 + 8 + 1,
            "_attend_split": layers + codec_layers,
            "_merge": layers + codec_layers,
            "_attend": 8 * 6,
            "_shortlist": 1,
            "_sample": 1 + 8,
        }
