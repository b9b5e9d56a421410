"""The structure that docs/architecture.md describes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipecat_personaplex"
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/evaluation.md",
    "docker/README.md",
]

# A name that two folders share must mean the same thing in both, seen from that folder.
SHARED_NAMES = {
    "audio.py": "PCM in frames; as Pipecat's frames need it; on the wire",
    "config.py": "settings of the engine; of a model's architecture; of the server",
    "drift.py": "a command, and the measurement that it runs",
    "engine.py": "an EngineLike: with a model thread, and with servers",
    "errors.py": "the package's errors, and what Pipecat makes of them",
    "instructions.py": "control messages of a session: executed by a server, sent by a client",
    "metrics.py": "what Pipecat is told in MetricsFrames, and what Prometheus reads",
    "moshi.py": "NVIDIA's protocol: its messages, and the client that speaks it",
    "sizing.py": "a command, and the arithmetic that it prints",
    "ring_attention.py": "attention over rings: the kernel, and the classes that choose it",
    "session.py": "a SessionLike: of the engine, and of a server",
    "speech.py": "forced speech of an engine's session, and of a Pipecat call",
    "stats.py": "counters of an engine, and of servers",
    "voices.py": "a command, and the voice library that it shows",
    "weights.py": "a model's weights: their low-bit formats, and reading them from a file",
}


def modules() -> list[Path]:
    return [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]


def test_the_root_holds_the_foundations_and_the_contract_alone() -> None:
    foundations = {"errors", "constants", "config", "audio", "audio_files", "words", "logs"}
    contract = {"interface", "session_base", "session", "async_session", "callbacks", "process"}
    assert {p.stem for p in PACKAGE.glob("*.py")} == foundations | contract | {"__init__"}


def test_every_module_has_one_meaning_to_its_name() -> None:
    folders = defaultdict(list)
    for path in modules():
        folders[path.name].append(path.parent.relative_to(ROOT).as_posix())
    shared = {name: places for name, places in folders.items() if len(places) > 1}
    assert shared.keys() == SHARED_NAMES.keys(), shared


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_tree_in_the_documentation_names_every_folder_and_root_module() -> None:
    [tree] = re.findall(
        r"^```\n(pipecat_personaplex/\n.*?)^```", text("docs/architecture.md"), re.S | re.M
    )
    for path in PACKAGE.iterdir():
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            name = path.name + ("/" if path.is_dir() else "")
            assert f"\n  {name} " in tree, name


def test_each_folder_of_the_package_has_its_tests() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_exist(document: str) -> None:
    """Links to files, and paths in backticks that begin with a folder of the checkout."""
    content = text(document)
    for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", content):
        assert ((ROOT / document).parent / link).exists(), link
    folders = "tests|bots|docs|docker|training|pipecat_personaplex"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", content):
        assert (ROOT / path).exists(), path


def test_the_index_of_the_architecture_names_definitions_that_exist() -> None:
    cell = r"\]\(\.\./(pipecat_personaplex/[\w/]+\.py)\), `([\w.]+)`"
    rows = re.findall(cell, text("docs/architecture.md"))
    assert len(rows) >= 5
    for path, name in rows:
        source = (ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(?:async )?(?:def|class) {part}\b", source, re.M), (path, name)


def text(document: str) -> str:
    return (ROOT / document).read_text()
