"""What ``personaplex doctor`` looks at: one function a subject, each returns one finding."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pipecat_personaplex.cli.doctor_kernels import check_kernels
from pipecat_personaplex.cli.finding import Finding

PAGE_PORT, SERVER_PORT = 7860, 8998
_GIB = 1 << 30
_RELEASE_GIB = 17
"""Size of the files of the released 7B, as downloaded."""
_NANO_GIB = 1
"""Free memory for PyTorch, Pipecat and nano."""
_HUB_SECONDS = 10


def findings() -> Iterator[Finding]:
    """Run all checks, the quick ones first. A check that raises becomes a problem."""
    for subject, check in _CHECKS:
        try:
            yield check()
        except Exception as error:  # an error of one check is a finding, and the other checks go on
            reason = " ".join(str(error).split())[:300]
            yield Finding(
                subject,
                "problem",
                f"the check failed: {type(error).__name__}: {reason}",
                "reinstall pipecat-personaplex in a new virtual environment",
            )


def _python() -> Finding:
    name = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", "ok", name)


def _torch() -> Finding:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    found = f"{torch.__version__} ({build})"
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 11):
        return Finding("torch", "problem", found, "pip install 'torch>=2.11'")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Finding(
            "torch",
            "problem",
            f"{found}, but this machine has an NVIDIA driver",
            "install a CUDA build: see https://pytorch.org/get-started/locally",
        )
    return Finding("torch", "ok", found)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info(0)
        capability = f"{properties.major}.{properties.minor}"
        return Finding(
            "gpu",
            "ok",
            f"{properties.name}, compute capability {capability}, {free / _GIB:.1f} of "
            f"{total / _GIB:.1f} GiB free, {torch.cuda.device_count()} in all",
        )
    if torch.version.cuda and (shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()):
        return Finding(
            "gpu",
            "problem",
            "there is an NVIDIA device that PyTorch cannot use",
            "run nvidia-smi; update the driver, or install a build of PyTorch for its CUDA version",
        )
    if platform.system() == "Darwin":
        return Finding(
            "gpu", "note", "Apple's GPUs are not supported; nano runs on the CPU in real time"
        )
    return Finding(
        "gpu",
        "note",
        "no CUDA GPU: nano runs in real time, the 7B only on files or on another machine",
        "run personaplex serve on a machine with a GPU, and bots with --engine ws://MACHINE:8998",
    )


def _memory() -> Finding:
    import torch

    from pipecat_personaplex.engine.free_memory import available_bytes

    free = available_bytes(torch.device("cpu"))
    if free is None:
        return Finding("memory", "note", "this system does not report its free memory")
    detail = f"{free / _GIB:.1f} GiB free, {os.cpu_count()} cores"
    if free < _NANO_GIB * _GIB:
        return Finding("memory", "problem", detail, f"free {_NANO_GIB} GiB: nano needs as much")
    return Finding("memory", "ok", detail)


def _disk() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{folder}: {free / _GIB:.0f} GiB free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "hub cache",
            "note",
            f"{folder} cannot be written: only complete downloads in it can be used",
            "set HF_HOME to a folder that can be written",
        )
    if free < _RELEASE_GIB * _GIB and not _release_is_cached():
        return Finding(
            "hub cache",
            "note",
            detail,
            f"the 7B takes {_RELEASE_GIB} GB: free some, or set HF_HOME to a larger disk",
        )
    return Finding("hub cache", "ok", detail)


def _hub() -> Finding:
    from pipecat_personaplex.checkpoint.hub import RELEASE, obstacle_to_download

    if _release_is_cached():
        return Finding("7B weights", "ok", f"{RELEASE} is in the Hub's cache")
    results: list[str | None] = []
    request = threading.Thread(
        target=lambda: results.append(obstacle_to_download(RELEASE)), daemon=True
    )
    request.start()
    request.join(_HUB_SECONDS)
    if not results:
        return Finding(
            "7B weights",
            "note",
            f"the Hub did not answer within {_HUB_SECONDS} s",
            "check the network; nano needs none",
        )
    if results[0] is not None:
        return Finding("7B weights", "note", results[0])
    return Finding("7B weights", "ok", f"{RELEASE} may be downloaded ({_RELEASE_GIB} GB)")


def _release_is_cached() -> bool:
    from huggingface_hub import try_to_load_from_cache

    from pipecat_personaplex.checkpoint.file_names import MODEL_FILE
    from pipecat_personaplex.checkpoint.hub import RELEASE

    return isinstance(try_to_load_from_cache(RELEASE, MODEL_FILE), str)


def _nano() -> Finding:
    import time

    import numpy as np

    from pipecat_personaplex.config import EngineConfig, Persona
    from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS
    from pipecat_personaplex.engine.engine import Engine

    frames = 25
    engine = Engine.load("nano", EngineConfig(device="cpu", max_sessions=1, prefix_cache_bytes=0))
    with engine:
        persona = Persona(next(iter(engine.voices)), "")
        started = time.monotonic()
        engine.converse(persona, np.zeros(frames * FRAME_SAMPLES, np.float32))
        seconds = time.monotonic() - started
    factor = seconds / (frames * FRAME_SECONDS)
    detail = f"{frames * FRAME_SECONDS:.0f} s of a call computed in {seconds:.2f} s"
    if factor < 1:
        return Finding("nano", "ok", detail)
    return Finding(
        "nano", "note", f"{detail}: too slow for a live call", "stop other programs and try again"
    )


def _opus() -> Finding:
    if find_spec("opuslib_next") is None:
        return Finding(
            "opus",
            "note",
            "opuslib_next is not installed: no Opus audio in personaplex serve",
            "pip install 'pipecat-personaplex[server]'",
        )
    try:
        import opuslib_next  # noqa: F401
    except Exception:  # raises a bare Exception if the library is missing
        return Finding(
            "opus",
            "note",
            "the library libopus is missing: no Opus audio in personaplex serve",
            "apt install libopus0, or brew install opus",
        )
    return Finding("opus", "ok", f"opuslib_next {version('opuslib_next')}")


def _media() -> Finding:
    import av
    import soundfile

    codecs = len(av.codecs_available)
    return Finding(
        "audio files",
        "ok",
        f"libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__} ({codecs} codecs)",
    )


def _extras() -> Finding:
    from pipecat_personaplex.cli.serve import SERVER_PACKAGES
    from pipecat_personaplex.cli.talk import TALK_PACKAGES

    # Daily has no package for Windows.
    daily = () if platform.system() == "Windows" else ("daily",)
    extras = {
        "talk": TALK_PACKAGES,
        "bots": (*TALK_PACKAGES, *daily, "sphn"),
        "server": (*SERVER_PACKAGES, "opuslib_next"),
        "bench": ("matplotlib",),
    }
    missing = [extra for extra, names in extras.items() if None in map(find_spec, names)]
    try:
        pipecat = f"Pipecat {version('pipecat-ai')}"
    except PackageNotFoundError:
        return Finding("packages", "problem", "Pipecat is not installed", "pip install pipecat-ai")
    if not missing:
        return Finding("packages", "ok", f"{pipecat}, extras {', '.join(extras)}")
    return Finding(
        "packages",
        "note",
        f"{pipecat}; not installed: the extras {', '.join(missing)}",
        f"pip install 'pipecat-personaplex[{','.join(missing)}]' if you need them",
    )


def _ports() -> Finding:
    taken = [port for port in (PAGE_PORT, SERVER_PORT) if not _is_free(port)]
    if not taken:
        return Finding("ports", "ok", f"{PAGE_PORT} (page) and {SERVER_PORT} (server) are free")
    return Finding(
        "ports",
        "note",
        f"in use: {', '.join(map(str, taken))}",
        "choose another with --port, or stop the program that listens there",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _display() -> Finding:
    remote = bool(os.environ.get("SSH_CONNECTION"))
    if not remote:
        return Finding(
            "microphone",
            "ok",
            f"browsers allow it on http://localhost:{PAGE_PORT}",
        )
    return Finding(
        "microphone",
        "note",
        "you are logged in over SSH, and browsers allow a microphone only on localhost or HTTPS",
        f"forward the port: ssh -L {PAGE_PORT}:localhost:{PAGE_PORT} MACHINE (the page of "
        "personaplex talk then uses a WebSocket; the bots' page needs UDP to this machine)",
    )


_CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("python", _python),
    ("packages", _extras),
    ("torch", _torch),
    ("gpu", _gpu),
    ("memory", _memory),
    ("audio files", _media),
    ("opus", _opus),
    ("ports", _ports),
    ("microphone", _display),
    ("hub cache", _disk),
    ("7B weights", _hub),
    ("kernels", check_kernels),
    ("nano", _nano),
)
