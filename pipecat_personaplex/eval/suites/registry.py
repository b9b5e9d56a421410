"""The suites by name."""

from __future__ import annotations

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.suites import (
    fdb_v1,
    fdb_v15,
    humdial,
    nano_calls,
    service_duplex,
    wav_events,
)
from pipecat_personaplex.eval.suites.suite_files import Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        fdb_v1.SUITE,
        fdb_v15.SUITE,
        humdial.SUITE,
        service_duplex.SUITE,
        wav_events.SUITE,
        nano_calls.SUITE,
    )
}


def find_suite(name: str) -> Suite:
    """Return a suite.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in SUITES:
        raise ConfigError(f"suite {name!r} is unknown; it must be one of {', '.join(SUITES)}")
    return SUITES[name]
