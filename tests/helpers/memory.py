"""What loading takes of a process's own memory at its peak, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

# The file's mapped pages count in a process's resident set, though the kernel may drop them at
# any time; RssAnon counts what only this process has, and is sampled while the load runs.
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
    """Bytes taken at the peak and in the end by what a ``load`` returns.

    Args:
        setup: Source that defines ``load``, which returns models.
        arguments: From ``sys.argv[1]`` on.
    """
    # The allocator gives a real model's large tensors back as soon as they are freed; so it does
    # for smaller ones.
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(setup=setup), *arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    peak, result = map(int, out.split())
    return peak, result
