"""Compiles and loads the CPU kernels, C++ files in ``kernels/cpu``.

They are compiled once for a processor and a compiler, which takes a few seconds, and then loaded
from the user's cache. They run on PyTorch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from loguru import logger

SOURCES = Path(__file__).parent / "cpu"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC")
_COMPILE_SECONDS = 120
_MAX_REASON = 200

_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float}
# Result and arguments of each function, one letter each, as the C++ files declare them.
_SIGNATURES: dict[str, tuple[str, str]] = {
    "personaplex_amx": ("i", ""),
    "personaplex_huge_pages": ("", "pl"),
    "personaplex_pack": ("", "pppllll"),
    "personaplex_linear": ("", "ipppllppfpplllil"),
    "personaplex_bfloat16": ("", "pppllll"),
    "personaplex_attend": ("i", "ilpppllppppppppplllpl"),
}


def cpu_library() -> ctypes.CDLL:
    """Load the kernels, and compile them first if this processor's are not in the cache.

    A process tries this once.

    Raises:
        RuntimeError: The machine is not an x86-64 Linux machine, has no g++, or the compiler
            rejects the kernels, for example because the processor lacks AVX-512 with VNNI.
    """
    found = _find_library()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@lru_cache(maxsize=1)
def _find_library() -> ctypes.CDLL | str:
    """Load the library; return the message of the error if that fails."""
    try:
        return _load_library()
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _load_library() -> ctypes.CDLL:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise RuntimeError(f"there are none for {sys.platform} on {platform.machine()}")
    if "avx512_vnni" not in _processor().split():
        raise RuntimeError("the processor has no AVX-512 with VNNI")
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("there is no C++ compiler; install g++")
    version = _output([compiler, "--version"])
    key = hashlib.sha256("\n".join((version, _processor(), _openmp(), *_FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            key.update(source.read_bytes())
    name = f"cpu-{key.hexdigest()[:24]}.so"
    library = ctypes.CDLL(str(_built(name, compiler)))
    for function, (result, arguments) in _SIGNATURES.items():
        getattr(library, function).restype = _TYPES[result] if result else None
        getattr(library, function).argtypes = [_TYPES[letter] for letter in arguments]
    return library


def _built(name: str, compiler: str) -> Path:
    """The compiled library in the cache, or in a temporary folder if the cache is read-only."""
    try:
        folder = cached_assets_path("pipecat-personaplex", "kernels", "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_file():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                # Another process may compile the same; the last one to rename wins.
                os.replace(_compile(compiler, Path(work)), folder / name)
        return folder / name
    except (OSError, ValueError):  # ValueError: a file stands where the folder belongs
        # The folder stays: it must exist while the library is loaded.
        return _compile(compiler, Path(tempfile.mkdtemp(prefix="personaplex-kernels-")))


def _compile(compiler: str, folder: Path) -> Path:
    """Compile all C++ files into one shared library in ``folder``."""
    logger.info("compiling the CPU kernels; this happens once and takes a few seconds")
    objects, jobs = [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        target = folder / f"{source.stem}.o"
        command = [compiler, *_FLAGS, "-c", str(source), "-o", str(target)]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        objects.append(str(target))
    try:
        errors = [job.communicate(timeout=_COMPILE_SECONDS)[1] for job in jobs]
    finally:
        for job in jobs:  # does nothing to those that have ended
            job.kill()
    for job, error in zip(jobs, errors, strict=True):
        if job.returncode:
            raise RuntimeError(f"g++ failed: {_first_error(error)}")
    library = folder / "kernels.so"
    _output([compiler, "-shared", *objects, _openmp(), "-o", str(library)])
    return library


def _openmp() -> str:
    """The OpenMP library that PyTorch has loaded: with another, there would be two thread pools."""
    torch.get_num_threads()  # loads it
    # The sixth field is the file; it may have spaces.
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = {fields[5] for fields in (line.split(maxsplit=5) for line in maps) if fields[5:]}
    found = sorted(
        (path for path in loaded if "/libgomp" in path),
        key=lambda path: not path.startswith(str(Path(torch.__file__).parent)),
    )
    return found[0] if found else "-fopenmp"


def _processor() -> str:
    """The model and the instruction sets of the first processor."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags")))


def _output(command: list[str]) -> str:
    """Run a command and return what it prints.

    Raises:
        RuntimeError: It fails.
    """
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {_first_error(result.stderr)}")
    return result.stdout


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return " ".join((lines or ["no message"])[0].split())[:_MAX_REASON]
