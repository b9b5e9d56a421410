"""The page in the package was built from its source."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
STATIC = ROOT / "pipecat_personaplex" / "talk" / "static"


def source_hash() -> str:
    """What ``web/build.mjs`` writes beside its output."""
    digest = hashlib.sha256()
    for path in sorted((WEB / "src").iterdir(), key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_built_page_is_as_new_as_its_source() -> None:
    built = (STATIC / "source.sha256").read_text().strip()
    assert built == source_hash(), "run `make page` and commit pipecat_personaplex/talk/static"


def test_the_page_is_small_and_names_no_other_server() -> None:
    files = [path for path in STATIC.iterdir() if path.suffix != ".sha256"]
    assert sum(path.stat().st_size for path in files) < 64_000
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text, path
        assert text.count("http://") == text.count("http://localhost"), path


@pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules").is_dir(),
    reason="needs Node and web/node_modules: make page",
)
def test_building_again_gives_the_same_files(tmp_path: Path) -> None:
    subprocess.run(["node", "build.mjs", f"{tmp_path.as_uri()}/"], cwd=WEB, check=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in STATIC.iterdir())
    assert filecmp.cmpfiles(tmp_path, STATIC, names, shallow=False)[0] == names


@pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules").is_dir(),
    reason="needs Node and web/node_modules: make page",
)
def test_the_types_of_the_source_are_right() -> None:
    checked = subprocess.run(
        ["node_modules/.bin/tsc", "--noEmit"], cwd=WEB, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
