"""Time on a CUDA device, with PyTorch's CUDA interface replaced by fakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from loguru import logger

from pipecat_personaplex.bench.timing import device_seconds


class FakeEvent:
    """A CUDA event on a device whose clock, in ms, only calls advance."""

    calls = 0

    def record(self) -> None:
        self.at = FakeEvent.calls

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.at - self.at)


class FakeGraph:
    def replay(self) -> None:
        FakeEvent.calls += 3


@pytest.mark.parametrize("captures", [True, False])
def test_call_that_cannot_be_captured_is_timed_with_its_launches(
    monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    streams = ["the thread's own"]

    @contextmanager
    def graph(_: FakeGraph) -> Iterator[None]:
        before, streams[0] = streams[0], "the capture's"
        yield
        if not captures:  # PyTorch then leaves the capture stream current.
            raise RuntimeError("operation not permitted when stream is capturing")
        streams[0] = before

    def call() -> None:
        FakeEvent.calls += 5

    for name, stand_in in (
        ("device", lambda device: nullcontext()),
        ("synchronize", lambda: None),
        ("CUDAGraph", FakeGraph),
        ("graph", graph),
        ("current_stream", lambda: streams[0]),
        ("set_stream", lambda stream: streams.__setitem__(0, stream)),
        ("Event", lambda enable_timing: FakeEvent()),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING", format="{message}")
    seconds = device_seconds(call, 4, torch.device("cuda"))
    logger.remove(sink)
    assert seconds == (0.003 if captures else 0.005)
    assert streams == ["the thread's own"]
    assert ["not permitted" in line for line in warnings] == ([] if captures else [True])
