"""What a captured step of the 7B launches, on a device that has no values and no kernels."""

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

NOWHERE = torch.device("meta")
CALLERS = 24


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations that take a kernel; refuses those on tensors elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        assert_there(func, (args, kwargs, result))
        self.count += not (func.is_view or "empty" in func._schema.name)
        return result


class Kernel:
    """In place of a Triton kernel: checks and counts its launches."""

    def __init__(self, name: str, arguments: list[str], launches: Counter[str]):
        self._name, self._arguments, self._launches = name, arguments, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(extent > 0 for extent in grid) and max(grid[1:], default=1) < 1 << 16
        return self._launch

    def _launch(self, *given: object, **named: object) -> None:
        arguments = dict(zip(self._arguments, given, strict=False)) | named
        assert set(arguments) - {"num_warps", "num_stages"} == set(self._arguments)
        assert_there(self._name, arguments)
        self._launches[self._name] += 1


def assert_there(what: object, tree: object) -> None:
    for tensor in tensors(tree):
        assert tensor.device == NOWHERE, f"{what} meets a tensor on {tensor.device}"


def new_runner(*, kernels: bool) -> ModelRunner:
    config = ModelConfig()
    with NOWHERE:
        lm, mimi = PersonaPlexLM(config.lm).bfloat16(), Mimi(config.mimi)
    lm.reset_constants(NOWHERE)
    mimi.reset_constants(NOWHERE)
    if kernels:
        for module in lm.modules():
            if isinstance(module, Linear):
                module.kernel = True
        lm.depth.use_kernels()
    runner = ModelRunner(config, lm, mimi, CALLERS, NOWHERE, fixed=True)
    runner._sampler._fused = kernels
    return runner


def step(runner: ModelRunner, size: int) -> int:
    """A step of so many rows, in which the host has no part; PyTorch's launches."""
    assert runner._fixed is not None
    with Launches() as launches, no_host_reads():
        runner._fixed._run(size, runner._sampler.fixed)
    return launches.count


def test_without_kernels_it_needs_nothing_of_the_host() -> None:
    runner = new_runner(kernels=False)
    for size in batch_sizes(CALLERS):
        assert step(runner, size) > 1_000


@pytest.fixture
def triton_launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Every kernel is taken to work."""
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


def test_on_kernels_it_is_a_thousand_launches(triton_launches: Counter[str]) -> None:
    """What each costs besides its work, every caller waits for in every frame."""
    runner = new_runner(kernels=True)
    layers, codec_layers = 32, 2 * 8
    for size in batch_sizes(CALLERS):
        triton_launches.clear()
        assert step(runner, size) < 420
        assert triton_launches == {
            # Two projections and the MLP's two, in each layer and in 6 for each of 8 codes; the
            # text head and eight others, and what the depth steps take of the hidden state.
            "_gemm": 4 * layers + 8 * 6 * 4 + 1 + 8 + 1,
            "_attend_split": layers + codec_layers,
            "_merge": layers + codec_layers,
            "_attend": 8 * 6,
            "_shortlist": 1,
            "_sample": 1 + 8,
        }
