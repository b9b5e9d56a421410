"""A stand-in for CUDA graphs on a CPU: records the tensor operations of a call and replays them.

As with a CUDA graph, Python runs once. The recorder stores each operation with the tensors that
it used, so memory addresses and Python numbers are fixed. A replay runs the same operations in
order, into the same memory. The recorder refuses what a CUDA capture refuses: reading a tensor's
values, shapes that depend on values, and constants from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HOST_READS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
)
_HOST_OPERATORS = {
    "aten::_local_scalar_dense": "reads a value",
    "aten::item": "reads a value",
    "aten::equal": "reads a value",
    "aten::is_nonzero": "reads a value",
    "aten::nonzero": "has a shape that depends on values",
    "aten::masked_select": "has a shape that depends on values",
    "aten::unique_dim": "has a shape that depends on values",
    "aten::_unique2": "has a shape that depends on values",
    "aten::repeat_interleave": "has a shape that depends on values",
    "aten::lift_fresh": "brings a constant from the host",
    "aten::lift_fresh_copy": "brings a constant from the host",
}


class NotCapturable(Exception):
    """A CUDA graph cannot record this operation."""


@dataclass(frozen=True)
class _Call:
    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    writes: bool

    def replay(self) -> None:
        results = tensors(self.operator(*self.args, **self.kwargs))
        if self.writes:
            return
        for recorded, new in zip(self.results, results, strict=True):
            recorded.copy_(new)


class Recorder(TorchDispatchMode):
    """Records the tensor operations of a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        schema = func._schema
        refuse_host(schema.name, args)
        result = func(*args, **kwargs)
        given, results = tensors((args, kwargs)), tensors(result)
        # Packed weights of oneDNN have no storage, and no views.
        held = {tensor.untyped_storage().data_ptr() for tensor in given if not tensor.is_mkldnn}
        views = [tensor.untyped_storage().data_ptr() in held for tensor in results]
        writes = any(arg.alias_info and arg.alias_info.is_write for arg in schema.arguments)
        # A view needs no replay: earlier operations fill its memory.
        if writes or not all(views):
            assert writes or not any(views), f"{schema.name}: only a part of its result is a view"
            self.calls.append(_Call(func, args, kwargs, results, writes))
        return result

    def replay(self) -> None:
        """Run all operations again, into the same memory."""
        with torch.inference_mode():
            for call in self.calls:
                call.replay()


def refuse_host(name: str, args: tuple[Any, ...]) -> None:
    """Raise if an operator waits for the device or reads from the host."""
    if name in _HOST_OPERATORS:
        raise NotCapturable(f"{name} {_HOST_OPERATORS[name]}")
    if name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
        index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1])
    ):
        raise NotCapturable(f"{name} with a mask has a shape that depends on values")


class RecordingCapturer:
    """Captures calls as ``CudaCapturer`` does, and counts replays."""

    def __init__(self) -> None:
        self.replays = 0

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        call()  # a warm-up, as on CUDA; its results are not used
        recorder = Recorder()
        with no_host_reads(), recorder:
            call()

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raise if Python reads values of a tensor while a graph is recorded."""

    def refuse(name: str) -> Callable[..., object]:
        def refused(*args: object, **kwargs: object) -> object:
            raise NotCapturable(f"Tensor.{name} reads values")

        return refused

    def from_host(*args: object, **kwargs: object) -> object:
        raise NotCapturable("a constant comes from the host")

    with ExitStack() as stack:
        for name in _HOST_READS:
            stack.enter_context(mock.patch.object(Tensor, name, refuse(name)))
        for name in ("tensor", "as_tensor", "from_numpy"):
            stack.enter_context(mock.patch.object(torch, name, from_host))
        yield


def tensors(tree: object) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
