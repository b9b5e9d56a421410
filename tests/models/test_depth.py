"""The depth transformer's attention on a CPU: the kernel and PyTorch."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.kernels.availability import cpu_attention_works
from pipecat_personaplex.kernels.cpu_attention import attend_frame
from pipecat_personaplex.models.depth import DepthTransformer, attend_in_torch
from tests.helpers.depth import run_depth

INPUT_DIM, TEXT_CARD, CARD = 64, 40, 50


def new_depth(dim: int) -> DepthTransformer:
    torch.manual_seed(0)
    depth = DepthTransformer(
        dim=dim,
        num_heads=dim // 64,
        num_layers=2,
        hidden=96,
        input_dim=INPUT_DIM,
        text_card=TEXT_CARD,
        card=CARD,
    )
    for parameter in depth.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return depth


@pytest.mark.skipif(not cpu_attention_works(64, torch.float32), reason="no CPU kernels here")
def test_a_wide_depth_transformer_attends_in_the_kernel() -> None:
    plain, fast = new_depth(512), new_depth(512)
    fast.use_kernels()
    assert (plain.attend, fast.attend) == (attend_in_torch, attend_frame)
    hidden, text = torch.randn(5, INPUT_DIM), torch.randint(TEXT_CARD, (5,))
    codes, logits = run_depth(plain, hidden, text)
    fast_codes, fast_logits = run_depth(fast, hidden, text)
    assert torch.equal(fast_codes, codes)
    torch.testing.assert_close(fast_logits, logits, atol=1e-4, rtol=1e-4)


def test_a_narrow_depth_transformer_is_not_worth_a_compiler() -> None:
    depth = new_depth(256)
    depth.use_kernels()
    assert depth.attend is attend_in_torch
