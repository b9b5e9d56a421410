"""Runs the depth transformer's steps of a frame."""

from __future__ import annotations

import torch
from torch import Tensor

from pipecat_personaplex.models.depth import DepthTransformer


def run_depth(
    depth: DepthTransformer,
    hidden: Tensor,
    text: Tensor,
    given: Tensor | None = None,
    steps: int = 8,
) -> tuple[Tensor, Tensor]:
    """Run the depth steps greedily or with given codes; codes and logits [B, steps, card]."""
    seen = []

    def choose(step: int, logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1) if given is None else given[:, step]

    with torch.inference_mode():
        codes = depth(hidden, text, choose, steps)
    return codes, torch.stack(seen, dim=1)
