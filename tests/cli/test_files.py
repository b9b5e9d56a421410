"""Output files: written completely or not at all, whatever their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.errors import UserError

NAMES = ["a.wav", "x" * 251 + ".wav", "a." + "é" * 126, "日" * 85]


@pytest.mark.parametrize("name", NAMES, ids=["short", "long", "long suffix", "wide"])
def test_every_name_that_is_accepted_can_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    check_outputs({"--output": path}, [])
    with whole_files([path]) as (temporary,):
        temporary.write_text("whole")
        assert temporary.name.endswith(name[-4:])  # a suffix chooses the format
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 252 + ".wav")
    with pytest.raises(UserError, match=r"^--output .*: File name too long; choose another name$"):
        check_outputs({"--output": path}, [])
