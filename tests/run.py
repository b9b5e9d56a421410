"""Runs every test that needs no GPU: ``python -m tests.run``, which ``make test`` calls.

Tests with clocks wait more than they compute. Those that compute run in the time that they leave,
at the lowest priority, and their output follows at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

# Tests with processes and clocks may miss a deadline on a busy machine: a second try, which the
# summary names.
_PYTEST = (sys.executable, "-m", "pytest", "--reruns", "1", "-rR")
_HERE = "not (gpu or measurement)"

COMPUTATION = ("-n", "2", "--dist", "worksteal", "-m", f"{_HERE} and not (realtime or serial)")
CLOCKS = (
    ("-n", "3", "--dist", "loadfile", "-m", f"{_HERE} and realtime"),
    ("-m", f"{_HERE} and serial"),
)
_LOWEST = 19


def main() -> int:
    """Run all groups.

    Returns:
        0 if all tests pass, otherwise 1.
    """
    began = time.monotonic()
    options = sys.argv[1:]
    with tempfile.TemporaryFile() as log:
        computation = subprocess.Popen(
            [*_PYTEST, *COMPUTATION, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(_LOWEST),
        )
        try:
            codes = [subprocess.call([*_PYTEST, *group, *options]) for group in CLOCKS]
            print(f"with clocks: {time.monotonic() - began:.0f} s; now the others", flush=True)
            codes.append(computation.wait())
        finally:
            computation.terminate()
            log.seek(0)
            sys.stdout.write(log.read().decode(errors="replace"))
    print(f"all tests: {time.monotonic() - began:.0f} s")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
