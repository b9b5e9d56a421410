"""Compiling the CPU kernels: the cache, and machines that cannot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path
from loguru import logger

from pipecat_personaplex.kernels import availability, cpu_library
from pipecat_personaplex.models.low_bit_linear import (
    Int4Linear,
    Int8Linear,
    low_bit_linear,
)
from pipecat_personaplex.quantization.weights import quantize


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(availability, "_results", {})
    cpu_library._find_library.cache_clear()
    yield
    cpu_library._find_library.cache_clear()


def cannot_load() -> str:
    with pytest.raises(RuntimeError) as caught:
        cpu_library.cpu_library()
    return str(caught.value)


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library.platform, "machine", lambda: "aarch64")
    assert "on aarch64" in cannot_load()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc")
def test_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "_processor", lambda: "flags : sse2 avx2")
    assert cannot_load() == "the processor has no AVX-512 with VNNI"


needs_kernels = pytest.mark.skipif(
    not availability.cpu_gemm_works("int8"), reason="no CPU kernels here"
)


@needs_kernels
def test_without_a_compiler_a_library_multiplies_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_library.shutil, "which", lambda name: None)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    try:
        eight = low_bit_linear(quantize(torch.randn(64, 256), "int8"))
        four = low_bit_linear(quantize(torch.randn(64, 256), "int4"))
        low_bit_linear(quantize(torch.randn(64, 256), "int4"))
    finally:
        logger.remove(sink)
    assert isinstance(eight, Int8Linear)
    assert isinstance(four, Int4Linear)
    assert [line.split(" is not")[0] for line in lines if "CPU kernel" in line] == [
        "the CPU kernel for int8 weights",
        "the CPU kernel for int4 weights",
    ]
    assert "there is no C++ compiler; install g++" in lines[0]


@needs_kernels
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp: error: no" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(cpu_library.shutil, "which", lambda name: str(compiler))
    monkeypatch.setattr(cpu_library, "cached_assets_path", lambda *names: tmp_path / "cache")
    assert cannot_load() == "g++ failed: x.cpp: error: no"
    assert list((tmp_path / "cache").iterdir()) == []


@needs_kernels
def test_the_library_is_compiled_once_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Path(cpu_library.cpu_library()._name)
    calls: list[Path] = []

    def copy(compiler: str, folder: Path) -> Path:
        calls.append(folder)
        return Path(shutil.copyfile(compiled, folder / "kernels.so"))

    monkeypatch.setattr(cpu_library, "cached_assets_path", lambda *names: tmp_path / "cache")
    monkeypatch.setattr(cpu_library, "_compile", copy)
    for _ in range(2):
        cpu_library._find_library.cache_clear()
        assert Path(cpu_library.cpu_library()._name).name == compiled.name
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [compiled.name]


@needs_kernels
def test_there_is_one_openmp_library() -> None:
    cpu_library.cpu_library()
    maps = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    linked = os.path.realpath(cpu_library._openmp())
    assert linked.startswith(str(Path(torch.__file__).parent))
    # Its name is that of the library in the kernels' header, so that the loader reuses it.
    assert [path for path in maps if os.path.realpath(path) == linked]


@needs_kernels
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(cpu_library, "_compile", lambda compiler, folder: tmp_path / folder.name)
    for cache in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/nowhere")):
        places = partial(cached_assets_path, assets_dir=cache)  # the real one creates the folder
        monkeypatch.setattr(cpu_library, "cached_assets_path", places)
        built = cpu_library._built("cpu-1.so", "g++")
        assert built.name.startswith("personaplex-kernels-")


def test_a_path_with_spaces_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "7f00-7f01 r-xp 00000000 08:01 42    /home/my projects/libgomp-1.so"
    monkeypatch.setattr(Path, "read_text", lambda path, *_: f"{line}\n7f02-7f03 rw-p 0 00:00 0\n")
    assert cpu_library._openmp() == "/home/my projects/libgomp-1.so"


@needs_kernels
def test_a_failure_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(cpu_library.shutil, "which", lambda name: tried.append(name))
    assert {cannot_load(), cannot_load()} == {"there is no C++ compiler; install g++"}
    assert tried == ["g++"]
