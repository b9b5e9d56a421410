"""Modules whose calls and attributes cost little: a step makes thousands of them.

On a CPU a step of a small model consists of short operations, and ``nn.Module`` adds a microsecond
to each call of a module (for hooks) and to each access to a parameter or a submodule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Module(nn.Module):
    """An ``nn.Module`` without hooks: a call is a call of ``forward``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__call__ = cls.forward  # type: ignore[method-assign]

    # Each method below replaces a member. It first removes what ``bind_members`` has stored of it.

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, parameter, buffer or submodule."""
        self.__dict__.pop(name, None)
        super().__setattr__(name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add or replace a buffer."""
        self.__dict__.pop(name, None)
        super().register_buffer(name, tensor, persistent)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        for members in (self._parameters, self._buffers):
            for name in members:
                self.__dict__.pop(name, None)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def bind_members(model: nn.Module) -> None:
    """Store parameters, buffers and submodules as plain attributes too, which are found faster.

    Args:
        model: A model that is loaded and optimised; those of its modules that are a ``Module``.
    """
    for module in model.modules():
        if isinstance(module, Module):
            for members in (module._parameters, module._buffers, module._modules):
                module.__dict__.update(members)
