"""Attacks on ``personaplex serve`` while a caller talks.

    pytest tests/attack/test_server_attack.py -m measurement -s

prints what the caller hears during each attack, and what the attack costs the server, and checks
that the caller is unharmed. The other test makes the same attacks in a second each and checks what
does not depend on the machine's load: nobody is locked out, nothing is lost, no memory is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.attack.attackers import ATTACKS
from tests.attack.victim import Harm, Victim, memory_mib
from tests.helpers.forking import run
from tests.helpers.servers import ServeProcess

_MAX_GROWTH_MIB = 50


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    with ServeProcess("--max-sessions", 4, "--health-port", 0) as running:
        yield running


def attack(server: ServeProcess, name: str, seconds: float) -> int:
    """Run an attacker in a process of its own; return how much it has sent."""
    address = server.url.partition("//")[2]
    done = run("tests.attack.attackers", [name, address, str(seconds)], timeout=60)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["sent"])


def attacked(server: ServeProcess, name: str, seconds: float) -> tuple[Harm, int, float]:
    """Attack during a call; return the harm, what was sent, and the growth of memory in MiB."""
    before = memory_mib(server.process.pid)
    with Victim("tests.attack.victim", server.ws_url, seconds + 4) as victim:
        sent = attack(server, name, seconds)
        # The victim's address is not the attacker's: it is served at once.
        assert server.get("/v1/voices").status_code == 200
    time.sleep(0.5)
    return victim.harm(), sent, memory_mib(server.process.pid) - before


@pytest.mark.serial
@pytest.mark.parametrize("name", ATTACKS)
def test_the_caller_is_heard_and_others_can_connect(server: ServeProcess, name: str) -> None:
    harm, sent, growth = attacked(server, name, 1)
    assert sent
    assert harm.heard_seconds >= 0.5 * harm.expected_seconds, str(harm)  # on a busy machine
    assert growth < _MAX_GROWTH_MIB


@pytest.mark.measurement
@pytest.mark.parametrize("name", ATTACKS)
def test_the_caller_is_unharmed(server: ServeProcess, name: str) -> None:
    harm, sent, growth = attacked(server, name, 8)
    print(f"\n{name}: {sent} sent; {harm}; memory {growth:+.0f} MiB")
    harm.check()
    assert growth < _MAX_GROWTH_MIB
