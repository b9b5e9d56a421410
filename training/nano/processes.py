"""Training in several processes: each samples its own batches, and they share their gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from training.nano.progress import Clock


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Join torchrun's process group, if any; yields rank and number of processes."""
    if not dist.is_torchelastic_launched():
        yield 0, 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" is this device from here on
    dist.init_process_group()
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def average(parameters: Iterable[nn.Parameter], clock: Clock, count: int) -> None:
    """Average gradients and clocks over all processes; equal clocks make all end together."""
    if count == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    spent = grads[0].new_tensor([clock.spent])
    shared = [spent, *grads]
    mean = parameters_to_vector(shared)
    dist.all_reduce(mean)
    vector_to_parameters(mean / count, shared)
    clock.spent = spent.item()
