"""Modules without hooks, and members that are bound as plain attributes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipecat_personaplex.models.module import Module, bind_members


class Scale(Module):
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("factor", torch.full((2,), 3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by both."""
        return x * self.weight * self.factor


class Twice(Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scale()

    def forward(self, x: Tensor) -> Tensor:
        """Scale twice."""
        y: Tensor = self.inner(self.inner(x))
        return y


def bound() -> Twice:
    model = Twice()
    bind_members(model)
    assert model.__dict__["inner"] is model.inner
    assert model.inner.__dict__["weight"] is model.inner.weight
    return model


def test_bound_members_are_still_members() -> None:
    model = bound()
    assert model(torch.ones(2)).tolist() == [9, 9]
    assert [name for name, _ in model.named_parameters()] == ["inner.weight"]
    assert [name for name, _ in model.named_buffers()] == ["inner.factor"]


def test_what_replaces_a_bound_member_takes_effect() -> None:
    model = bound()
    model.inner.weight = nn.Parameter(torch.full((2,), 2.0), requires_grad=False)
    assert model(torch.ones(2)).tolist() == [36, 36]
    model.inner.factor = torch.ones(2)
    assert model(torch.ones(2)).tolist() == [4, 4]
    bind_members(model)
    model.inner.register_buffer("factor", torch.full((2,), 5.0))
    assert model(torch.ones(2)).tolist() == [100, 100]
    model.set_submodule("inner", Scale())
    assert model(torch.ones(2)).tolist() == [9, 9]


def test_a_bound_model_can_change_its_type() -> None:
    model = bound().to(torch.float64)
    assert model.inner.weight.dtype is model.inner.factor.dtype is torch.float64
    assert model(torch.ones(2, dtype=torch.float64)).dtype is torch.float64
