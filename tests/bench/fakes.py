"""Stand-ins for clocks."""

from __future__ import annotations


class FakeClock:
    """Replaces the ``time`` module: time passes only when something sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
