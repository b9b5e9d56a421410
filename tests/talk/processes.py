"""``personaplex talk`` as a real process."""

from __future__ import annotations

import signal
import sys

from tests.helpers.bots import BotProcess


class TalkProcess(BotProcess):
    """Serves its page on a free port of 127.0.0.1 while its ``with`` block runs."""

    serving_line = "Talk to "

    def __init__(self, *arguments: str, fresh: bool = False, **variables: str):
        super().__init__("pipecat_personaplex.cli", fresh=fresh, **variables)
        self._arguments = ["talk", "--no-browser", "--port", str(self.port)]
        self._arguments += ["--log-level", "INFO", *arguments]

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", self._module, *self._arguments]

    def add(self, *arguments: str) -> None:
        """Add arguments before the process starts."""
        self._arguments += arguments

    @property
    def variables(self) -> dict[str, str]:
        return self._environment

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does, and wait for the end."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode
