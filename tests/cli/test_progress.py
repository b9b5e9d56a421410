"""The commands' progress bar: on a terminal only, and never on stdout."""

from __future__ import annotations

import io
import sys

import pytest

from pipecat_personaplex.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stdout, stderr = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar("quantizing") as progress:
        progress(1, 2)
        print("output")
        progress(2, 2)
    assert stdout.getvalue() == "output\n"
    drawn = stderr.getvalue()
    assert "quantizing" in drawn and "100%" in drawn


def test_nothing_is_drawn_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("quantizing") as progress:
        progress(1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
