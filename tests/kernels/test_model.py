"""Model steps on Triton kernels against the same modules on PyTorch, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipecat_personaplex.checkpoint.loader import load_checkpoint
from pipecat_personaplex.config import Quantization
from pipecat_personaplex.models import depth as depth_module
from pipecat_personaplex.models import low_bit_linear as low_bit_module
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm
from pipecat_personaplex.models.linear import Linear, stack_linears
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.low_bit_linear import BlockLinear, KernelLinear, low_bit_linear
from pipecat_personaplex.quantization.weights import quantize
from tests.golden_data import CHECKPOINT
from tests.helpers.depth import run_depth

pytest.importorskip("triton")

from pipecat_personaplex.kernels import depth_attention as attention_module
from pipecat_personaplex.kernels import gemm as gemm_module

CPU = torch.device("cpu")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that a test has called."""
    called: list[str] = []

    def count(module: object, name: str) -> None:
        kernel = getattr(module, name)

        def counted(*args: object, **kwargs: object) -> object:
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(gemm_module, "gemm")
    count(attention_module, "depth_attention")
    return called


def golden(dtype: torch.dtype = torch.float32) -> PersonaPlexLM:
    return load_checkpoint(CHECKPOINT, device=CPU, dtype=dtype).lm


def on_kernels(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the kernels, as on CUDA, except the heads: the interpreter is too slow for them."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.kernel = module.quantizable
    monkeypatch.setattr(depth_module, "depth_attention_works", lambda device, dtype: True)
    if isinstance(model, PersonaPlexLM):
        model.depth.use_kernels()


def low_bit(model: nn.Module, quantization: Quantization, form: type[nn.Module]) -> None:
    """Replace each quantisable layer by ``form``, as loading does."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and (format := module.format(quantization)):
            model.set_submodule(name, form(quantize(module.weight, format)))


def random_input(lm: PersonaPlexLM, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, lm.config.dim, generator=generator).to(lm.dtype)
    return hidden, torch.randint(lm.config.text_card, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [1, 3])
def test_depth_on_kernels_takes_five_launches_a_layer(
    monkeypatch: pytest.MonkeyPatch, launches: list[str], rows: int
) -> None:
    plain, fast = golden(), golden()
    on_kernels(fast, monkeypatch)
    hidden, text = random_input(plain, rows)
    codes, logits = run_depth(plain.depth, hidden, text)
    assert not launches
    fast_codes, fast_logits = run_depth(fast.depth, hidden, text)
    assert torch.equal(fast_codes, codes)
    torch.testing.assert_close(fast_logits, logits, atol=1e-4, rtol=1e-4)
    layers = plain.config.depformer_num_layers
    assert launches.count("depth_attention") == 8 * layers
    # One product for the inputs of all steps; then four products a step and layer.
    assert launches.count("gemm") == 1 + 8 * 4 * layers


def test_first_depth_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = golden(), golden()
    on_kernels(fast, monkeypatch)
    hidden, text = random_input(plain, 2)
    expected, _ = run_depth(plain.depth, hidden, text, steps=1)
    assert torch.equal(run_depth(fast.depth, hidden, text, steps=1)[0], expected)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_depth_on_low_bit_weights(
    monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    plain, fast = golden(torch.bfloat16), golden(torch.bfloat16)
    low_bit(plain, quantization, BlockLinear)
    low_bit(fast, quantization, KernelLinear)
    on_kernels(fast, monkeypatch)
    hidden, text = random_input(plain, 2)
    codes, logits = run_depth(plain.depth, hidden, text)
    _, fast_logits = run_depth(fast.depth, hidden, text, given=codes)
    assert (fast_logits - logits).std() < 0.03 * logits.std()


def test_stacked_inputs_share_memory_with_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = golden(torch.bfloat16)
    before = lm.depth.inputs[3].weight.clone()
    on_kernels(lm, monkeypatch)
    weights = [layer.weight for layer in lm.depth.inputs]
    assert torch.equal(weights[3], before)
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    assert len(storages) == 1
    # Layers of different formats are not stacked, nor are int4 layers.
    low_bit(lm.depth.inputs[0:1], "int8", KernelLinear)
    mixed = [*lm.depth.inputs[1:], KernelLinear(quantize(before, "int8"))]
    assert stack_linears(mixed) is None
    assert stack_linears([KernelLinear(quantize(before, "int4"))]) is None
    eight = stack_linears([KernelLinear(quantize(before, "fp8")) for _ in range(2)])
    assert eight is not None
    assert eight.scale is not None
    assert (eight.weight.shape[0], eight.scale.shape[0]) == (2 * len(before), 2 * len(before))


def test_prompts_are_multiplied_by_the_blas(launches: list[str]) -> None:
    mlp, norm = GatedMLP(32, 48), RMSNorm(32)
    for parameter in (*mlp.parameters(), *norm.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 5, 32)
    expected = mlp(x, norm=norm, residual=x)
    mlp.linear_in.kernel = mlp.linear_out.kernel = True
    assert torch.equal(mlp(x, norm=norm, residual=x), expected)
    assert not launches
    rows = x.transpose(0, 1)
    torch.testing.assert_close(mlp(rows, norm=norm, residual=rows), expected.transpose(0, 1))
    assert len(launches) == 2


@pytest.mark.parametrize("format", ["int8", "fp8", "int4"])
def test_kernel_layers_accept_float32(format: Quantization) -> None:
    low = quantize(torch.randn(48, 64), format)
    x = torch.randn(3, 2, 64)
    y = KernelLinear(low)(x)
    assert y.dtype == torch.float32
    expected = BlockLinear(low)(x)
    assert (y - expected).norm() < 0.01 * expected.norm()


def test_prompts_are_multiplied_in_fp8(
    monkeypatch: pytest.MonkeyPatch, launches: list[str]
) -> None:
    low = quantize(torch.randn(48, 64), "fp8")
    layer, plain = KernelLinear(low), BlockLinear(low)
    x = torch.randn(1, 40, 64).bfloat16()
    assert layer.kernel_weight(x) is not None  # a CPU has no fp8 products
    monkeypatch.setattr(low_bit_module, "scaled_mm_works", lambda device: True)
    assert layer.kernel_weight(x) is None
    y, expected = layer(x), plain(x)
    assert not launches
    assert y.shape == (1, 40, 48)
    assert (y - expected).norm() < 0.05 * expected.norm()
    # A batch of rows is not a prompt: its products must not depend on the number of rows.
    assert layer.kernel_weight(x.transpose(0, 1)) is not None
    assert KernelLinear(quantize(torch.randn(40, 64), "fp8")).kernel_weight(x) is not None


@pytest.mark.parametrize("works", [False, True])
def test_cuda_weights_are_expanded_in_blocks_without_a_kernel(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    class OnCuda(torch.Tensor):
        """A tensor that reports a CUDA device."""

        device = torch.device("cuda")

    probed: list[object] = []

    def gemm_works(device: torch.device, format: Quantization | None) -> bool:
        probed.append((device, format))
        return works

    low = quantize(torch.randn(32, 64), "int4")
    low = low._replace(weight=low.weight.as_subclass(OnCuda))
    monkeypatch.setattr(low_bit_module, "gemm_works", gemm_works)
    layer = low_bit_linear(low)
    assert type(layer) is (KernelLinear if works else BlockLinear)
    assert layer.weight is low.weight
    assert probed == [(torch.device("cuda"), "int4")]
