"""Measures the peak memory of loading a model, in a new process."""

from __future__ import annotations

import os
import subprocess
import sys

# The resident set includes mapped pages of the file, which the kernel may drop at any time. RssAnon
# counts only the process's own memory; it is sampled while the model is loaded.
_MEASURE = """
import sys, threading, torch
{setup}
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10

def sample():
    global peak
    while not done.wait(0.0005):
        peak = max(peak, anonymous())

before = peak = anonymous()
done = threading.Event()
sampler = threading.Thread(target=sample)
sampler.start()
models = load()
done.set()
sampler.join()
print(max(peak, anonymous()) - before, sum(
    tensor.numel() * tensor.element_size()
    for model in models
    for tensor in (*model.parameters(), *model.buffers())
))
"""


def loading_peak(setup: str, *arguments: str) -> tuple[int, int]:
    """Bytes at the peak while ``load`` runs, and bytes of the models that it returns.

    Args:
        setup: Source code that defines ``load``, which returns models.
        arguments: The process's ``sys.argv[1:]``.
    """
    # The allocator returns the memory of a real model's large tensors as soon as they are freed.
    # With this threshold it does so for the small ones of these tests.
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(setup=setup), *arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    peak, result = map(int, out.split())
    return peak, result
