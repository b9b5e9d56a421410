"""Measures the peak memory of loading a model, in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

# The resident set includes mapped pages of the file, which the kernel may drop at any time. RssAnon
# counts only the process's own memory; it is sampled while the model is loaded.
_MEASURE = """
import gc, os, sys, threading, torch
{setup}
status = os.open("/proc/self/status", os.O_RDONLY)

def anonymous():
    return int(os.pread(status, 4096, 0).partition(b"RssAnon:")[2].split(None, 1)[0]) << 10

def sample():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

def measure(variant):
    global peak, done
    before = peak = anonymous()
    done = threading.Event()
    sampler = threading.Thread(target=sample)
    sampler.start()
    models = load(variant or None)
    done.set()
    sampler.join()
    print(max(peak, anonymous()) - before, sum(
        tensor.numel() * tensor.element_size()
        for model in models
        for tensor in (*model.parameters(), *model.buffers())
    ))

for variant in sys.argv[1].split(","):
    measure(variant)
    gc.collect()
"""


def loading_peaks(
    setup: str, variants: Sequence[str | None], *arguments: str
) -> list[tuple[int, int]]:
    """Load models in a new process; the peak and the size of each, in bytes.

    Args:
        setup: Source code that defines ``load(variant)``, which returns models.
        variants: Arguments of ``load``, one after the other.
        arguments: The process's ``sys.argv[2:]``.
    """
    # The allocator returns the memory of a real model's large tensors as soon as they are freed.
    # With this threshold it does so for the small ones of these tests.
    out = subprocess.run(
        [
            *(sys.executable, "-c", _MEASURE.format(setup=setup)),
            *(",".join(variant or "" for variant in variants), *arguments),
        ],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    measured = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(measured) == len(variants)
    return [(peak, result) for peak, result in measured]
