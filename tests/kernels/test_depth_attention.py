"""The depth attention kernel against PyTorch's attention, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from pipecat_personaplex.kernels import depth_attention as module
from pipecat_personaplex.kernels.depth_attention import depth_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "dim"), [(1, 2, 16), (3, 2, 24), (2, 1, 64)])
def test_each_step_attends_to_the_steps_so_far(
    batch: int, heads: int, dim: int, dtype: torch.dtype
) -> None:
    # Values of earlier frames in the buffers must not be read.
    keys, values = (torch.full((batch, heads, 8, dim), float("nan")).to(dtype) for _ in range(2))
    past_keys, past_values = [], []
    for step in range(8):
        projected = torch.randn(batch, 1, 3, heads, dim).to(dtype)
        q, k, v = projected.permute(2, 0, 3, 1, 4).unbind(0)
        y = depth_attention(q, k, v, keys, values, step)
        past_keys.append(k)
        past_values.append(v)
        expected = F.scaled_dot_product_attention(
            q.float(), torch.cat(past_keys, 2).float(), torch.cat(past_values, 2).float()
        )
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)
        assert torch.equal(keys[:, :, step], k[:, :, 0])
        assert torch.equal(values[:, :, step], v[:, :, 0])
        assert keys[:, :, step + 1 :].isnan().all()


def test_an_empty_batch_launches_nothing() -> None:
    empty = torch.empty(0, 2, 1, 16)
    past = torch.empty(0, 2, 8, 16)
    assert depth_attention(empty, empty, empty, past, past.clone(), 0).shape == (0, 2, 1, 16)


def test_check_rejects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module.check(torch.device("cpu"), torch.bfloat16)
    right = module.depth_attention
    monkeypatch.setattr(module, "depth_attention", lambda *args: 1.1 * right(*args))
    with pytest.raises(RuntimeError, match="the attention differs from PyTorch's by"):
        module.check(torch.device("cpu"), torch.bfloat16)
