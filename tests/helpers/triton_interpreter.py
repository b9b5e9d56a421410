"""Triton kernels without a GPU: its interpreter, chosen before anything imports Triton.

The interpreter is mended for numpy 2.4. The two steps that take most of its time are replaced by
faster ones.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def use_interpreter() -> None:
    """Have kernels interpreted on a machine without a GPU; on others they are compiled.

    Triton decides when it is first imported, for the whole process.
    """
    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        # Its scalars are arrays of one element, which numpy 2.4 no longer takes for a loop's bound.
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._patch_lang = patch_once(interpreter._patch_lang)
    interpreter.ReduceOps.generic_reduce = reduce_slices


def patch_once(patch_lang: Any) -> Any:
    """Patch ``triton.language`` for the functions of a module once, not at each call of one."""
    patched: set[str] = set()

    def patch(fn: Any) -> Any:
        if fn.__module__ not in patched:
            patch_lang(fn)
            patched.add(fn.__module__)
        return SimpleNamespace(restore=lambda: None)

    return patch


def reduce_slices(self: Any, inputs: Any) -> Any:
    """Combine whole slices along the axis, from the first on, in place of single numbers."""
    whole = inputs[0].handle.data.ndim
    inputs, axis = self.unravel(inputs, self.axis)
    parts = [np.moveaxis(x.handle.data, axis, 0) for x in inputs]

    def slices(index: int) -> tuple[Any, ...]:
        return tuple(self.to_tensor(p[index], x.dtype) for p, x in zip(parts, inputs, strict=True))

    result = slices(0)
    for index in range(1, len(parts[0])):
        combined = self.combine_fn.fn(*result, *slices(index))
        result = combined if isinstance(combined, tuple) else (combined,)
    reduced = []
    for part, x, source in zip(result, inputs, parts, strict=True):
        data = part.handle.data.reshape(source.shape[1:])
        if self.axis is None:
            data = data.reshape([1] * whole) if self.keep_dims else data.item()
        elif self.keep_dims:
            data = np.expand_dims(data, axis)
        reduced.append(self.to_tensor(data, x.dtype))
    return reduced
