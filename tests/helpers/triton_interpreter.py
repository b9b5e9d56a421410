"""Triton kernels without a GPU: its interpreter, chosen before anything imports Triton."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

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
