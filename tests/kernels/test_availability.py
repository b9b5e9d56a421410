"""``probe``: one check and one warning for each kernel and device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loguru import logger

from pipecat_personaplex.kernels import availability
from pipecat_personaplex.kernels.availability import depth_attention_works, gemm_works, probe

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(availability, "_results", {})
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def test_a_kernel_is_checked_once_for_each_name_and_device(warnings: list[str]) -> None:
    checked: list[str] = []
    for _ in range(2):
        for name, device in (("one", CPU), ("one", META), ("other", CPU)):
            check = lambda key=f"{name} {device}": checked.append(key)  # noqa: E731
            assert probe(name, device, check, fallback="")
    assert checked == ["one cpu", "one meta", "other cpu"]
    assert warnings == []


def test_a_failed_check_is_logged_in_one_line(warnings: list[str]) -> None:
    def check() -> None:
        raise ValueError("no such instruction\n  and a dump " + "x" * 1000)

    for _ in range(2):
        assert not probe("the kernel", CPU, check, fallback="PyTorch does it")
    (line,) = warnings
    assert line.startswith(
        "the kernel is not available on cpu: ValueError: no such instruction and a dump xxx"
    )
    assert line.endswith("xxx; PyTorch does it\n")
    assert len(line) < 400


def test_missing_triton_is_the_reason(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.setattr(availability, "have_triton", lambda: False)
    assert not gemm_works(torch.device("cuda", 7), "int8")
    (line,) = warnings
    assert "not available on cuda:7: RuntimeError: Triton is not installed" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run here")
def test_a_missing_kernel_is_logged_once(warnings: list[str]) -> None:
    missing = torch.device("cuda", 7)
    for _ in range(2):
        assert not gemm_works(missing, "int8")
        assert not gemm_works(missing, None)
        assert not depth_attention_works(missing, torch.bfloat16)
        assert not gemm_works(CPU, "int8")
    int8, bfloat16, attention = warnings
    assert int8.startswith("the GEMM kernel for int8 weights is not available on cuda:7: ")
    assert int8.endswith("; weights are expanded to bfloat16 for each product, which is slower\n")
    assert bfloat16.startswith("the GEMM kernel for bfloat16 weights is not available on cuda:7: ")
    assert bfloat16.endswith("; PyTorch multiplies them, which is slower\n")
    assert attention.startswith(
        "the depth attention kernel for bfloat16 is not available on cuda:7: "
    )
    assert attention.endswith("; PyTorch attends in the depth transformer, which is slower\n")
    assert all(line.count("\n") == 1 for line in warnings)
