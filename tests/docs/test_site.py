"""The documentation site: it builds without a warning, and needs no third party to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    written = {path.stem for path in (ROOT / "docs").glob("*.md")}
    built = {path.stem for path in site.glob("*.html")}
    assert written <= built
    assert {"index", "protocol", "containers", "changelog", "nano"} <= built


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link|iframe|audio)[^>]*?(?:src|href)="(https?:[^"]*)"',
            page.read_text(),
        )
        assert not loaded, (page.name, loaded)


def test_links_between_documents_work(site: Path) -> None:
    for page in set(site.glob("*.html")) - {site / "404.html"}:  # its links start at the host
        for target in re.findall(r'<a [^>]*href="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_api_page_documents_every_public_name(site: Path) -> None:
    import pipecat_personaplex

    page = (site / "api.html").read_text()
    for name in pipecat_personaplex.__all__:
        assert re.search(rf'id="pipecat_personaplex\.[\w.]*{name}"', page), name


def test_navigation_lists_every_document() -> None:
    config = re.sub(r"!!\S+ \S+", "''", (ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w-]+\.md", str(yaml.safe_load(config)["nav"]))
    assert len(listed) == len(set(listed))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)
