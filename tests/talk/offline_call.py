"""A call without a network: ``unshare --net python -m tests.talk.offline_call FOLDER``.

A program of its own, because the bot and Chromium must start in the network namespace. It writes
the downloads of the call, a picture of the page and ``seen.json`` into the folder.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import expect, sync_playwright

from tests.helpers.chromium import browsing, with_microphone
from tests.helpers.real import whisper_folder
from tests.talk.browsers import PATIENCE_MS, PERIOD_SECONDS, TalkPage, write_microphone
from tests.talk.processes import TalkProcess

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP


def use_loopback_alone() -> None:
    """Start the loopback interface of a new network namespace, which has nothing else."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", name, flags | _UP))
    assert [name for _, name in socket.if_nameindex()] == ["lo"], "this is the machine's network"


def attempts_to_leave() -> int:
    """Packets and connections to other machines that the kernel of this namespace refused."""
    names, values = (
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Ip:")
    )
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(values[names.index("OutNoRoutes")]) + int(six["Ip6OutNoRoutes"])


class TracedTalk(TalkProcess):
    """``personaplex talk``, with a record of its connections if strace is installed."""

    def __init__(self, trace: Path, *arguments: str):
        super().__init__(*arguments)
        self._trace = trace
        if shutil.which("strace"):
            # -D: the bot is this process's child, and not strace's. --seccomp-bpf: other system
            # calls keep their speed.
            options = ["-D", "-f", "-qq", "--seccomp-bpf", "-o", str(trace)]
            self._tracer = ["strace", *options, "-e", "connect,sendmsg,sendmmsg"]

    def connections(self) -> list[str] | None:
        """Addresses outside this machine that it used; None without strace."""
        if not self._trace.exists():
            return None
        used = re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', self._trace.read_text())
        return sorted(set(used) - {"127.0.0.1", "::1"})


def call(folder: Path) -> dict[str, Any]:
    """Ask a question twice; return what went over the network."""
    microphone = write_microphone(folder / "question.wav")
    with (
        sync_playwright() as playwright,
        TracedTalk(
            folder / "trace.txt", "--model", "nano", "--transcribe", str(whisper_folder())
        ) as bot,
    ):
        bot_alone = attempts_to_leave()
        with (
            browsing(playwright, *with_microphone(microphone)) as browser,
            TalkPage(browser, bot.url, viewport={"width": 1180, "height": 900}) as page,
        ):
            addresses: list[str] = []
            page.page.on("request", lambda request: addresses.append(request.url))
            page.page.on("websocket", lambda websocket: addresses.append(websocket.url))
            page.open().talk()
            page.until_transcript("Owen.")
            heard = page.page.locator("#transcript .caller")
            asked = heard.filter(has_text="What is your name").first
            expect(asked).to_be_visible(timeout=PATIENCE_MS)
            page.page.wait_for_timeout(1000 * PERIOD_SECONDS)
            page.page.screenshot(path=folder / "page.png")
            page.hang_up()
            page.download("JSON", folder / "call.json")
            page.download("Stereo WAV", folder / "call.wav")
            transcript = page.page.locator("#transcript").inner_text()
        everything = attempts_to_leave()
    return {
        "page": bot.url,
        "addresses": addresses,
        "problems": page.problems,
        "transcript": transcript,
        "bot_alone": bot_alone,
        "attempts": everything,
        "connections": bot.connections(),
    }


if __name__ == "__main__":
    use_loopback_alone()
    target = Path(sys.argv[1])
    (target / "seen.json").write_text(json.dumps(call(target), indent=1))
