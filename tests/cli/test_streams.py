"""Consoles that cannot print a name, processes without a console, and names that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_data import VOICE_SAMPLE
from tests.helpers.commands import one_line

COMMAND = [sys.executable, "-m", "pipecat_personaplex.cli"]


def test_a_console_without_the_characters_of_a_name() -> None:
    code = (
        "import sys\n"
        "from pipecat_personaplex.cli import commands\n"
        "commands._prepare_streams()\n"
        "print('日本語.wav, caf\\udce9.wav')\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == b"\\u65e5\\u672c\\u8a9e.wav, caf\\udce9.wav"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_process_without_streams(closed: str) -> None:
    """A command that does its work to the end; --version exits before it."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "keys", "new", "bot"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("option", ["--input", "--voice", "--model", "--text-prompt"])
def test_bytes_that_are_no_text_are_one_line(tmp_path: Path, option: str) -> None:
    """As a shell in another encoding passes them."""
    broken = os.fsencode(tmp_path) + b"/caf\xe9"
    options = {"--input": os.fsencode(VOICE_SAMPLE), "--output": os.fsencode(tmp_path / "o.wav")}
    options |= {"--model": b"nano", option: broken}
    arguments = [part for name, value in options.items() for part in (name.encode(), value)]
    done = subprocess.run([*COMMAND, "offline", *arguments], capture_output=True)
    assert done.returncode == 2, done.stderr
    one_line(done.stderr.decode().splitlines()[-1] + "\n")
