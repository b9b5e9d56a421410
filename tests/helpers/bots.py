"""A bot as a real process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
# What would lead a bot elsewhere than the test means it to go.
_FOREIGN = re.compile(r"PERSONAPLEX_|PIPECAT_|DAILY_|TWILIO_|DEEPGRAM_|HF_")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return kept | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | variables


def run_bot(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a bot that is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
    )


class BotProcess:
    """A bot that serves on a free port of 127.0.0.1 for the length of a ``with``."""

    def __init__(self, module: str, *arguments: str, **variables: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._lines: list[str] = []
        self._serving = threading.Event()
        self._command = [sys.executable, "-m", module, "--host", "127.0.0.1"]
        self._command += ["--port", str(self.port), *arguments]
        self._environment = environment(**variables)

    def __enter__(self) -> BotProcess:
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        served = self._serving.wait(_START_SECONDS)
        if not served or self._process.poll() is not None:
            self.stop()
            raise AssertionError(f"the bot did not start:\n{self.log}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is not None:
            print(self.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has printed."""
        return "".join(self._lines)

    def stop(self) -> bool:
        """End it; whether it did so by itself, when told to."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
            obeyed = True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            obeyed = False
        self._reader.join(_STOP_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return obeyed

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if "Uvicorn running on" in line:
                self._serving.set()
        self._serving.set()  # it has ended
