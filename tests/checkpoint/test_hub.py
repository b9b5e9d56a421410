"""Fetching from a server shaped like the Hub, each time in a fresh process.

``huggingface_hub`` reads its environment when it is imported, so the client cannot run here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipecat_personaplex.checkpoint.hub import resolve
from pipecat_personaplex.errors import DownloadError
from tests.golden_data import CHECKPOINT
from tests.helpers.hub import FakeHub

REPO = "nvidia/tiny-personaplex"
TOKEN = "hf_averysecrettoken"
FILES = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
# Small, where a test is not about content.
STUBS = {name: name.encode() for name in FILES}

RESOLVE = """
import sys
from pipecat_personaplex.engine.download import resolve
from pipecat_personaplex.errors import DownloadError
try:
    print(resolve(sys.argv[1], progress=sys.argv[2] == "bars"))
except DownloadError as error:
    print("refused:", error)
"""


def fetch(
    url: str, home: Path, *, repo: str = REPO, bars: bool = False, **environment: str
) -> tuple[str, str]:
    """Resolve in a process of its own; its answer and its stderr."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": TOKEN,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, repo, "bars" if bars else "none"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert TOKEN not in done.stdout + done.stderr
    answer = done.stdout.rstrip("\n")
    assert "\n" not in answer
    return answer, done.stderr


def test_a_repository_is_fetched_once_and_serves_without_a_network(tmp_path: Path) -> None:
    others = {"README.md": b"", ".gitattributes": b"", "voices/x.pt": b""}
    with FakeHub(REPO, {**FILES, **others}) as hub:
        answer, stderr = fetch(hub.url, tmp_path)
        assert {seen.authorization for seen in hub.seen} == {f"Bearer {TOKEN}"}
        assert "%" not in stderr
        folder = Path(answer)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
        hub.seen.clear()
        assert fetch(hub.url, tmp_path)[0] == answer
        assert not [seen for seen in hub.seen if "resolve" in seen.path]
        url = hub.url
    # The server is gone, and its port with it.
    assert fetch(url, tmp_path)[0] == answer
    assert fetch(url, tmp_path, HF_HUB_OFFLINE="1")[0] == answer


def test_progress_bars_are_drawn_when_asked_for(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS) as hub:
        assert "%" in fetch(hub.url, tmp_path, bars=True)[1]


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    # The client keeps what it has in pieces of 10 MB.
    weights = bytes(range(256)) * (25 << 12)
    with FakeHub(REPO, {**STUBS, "model.safetensors": weights}) as hub:
        hub.cuts["model.safetensors"] = 1
        folder = Path(fetch(hub.url, tmp_path)[0])
        asked = [seen.range for seen in hub.downloads("model.safetensors")]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert asked == [None, "bytes=10485760-"]


def test_a_transfer_that_is_cut_for_good_says_so_and_can_be_repeated(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS, cuts={"model.safetensors": 99}) as hub:
        answer, _ = fetch(hub.url, tmp_path)
        assert answer.startswith(f"refused: the transfer of {REPO} broke off (")
        assert answer.endswith("run the same again, files that are complete are kept")
        offline, _ = fetch(hub.url, tmp_path, HF_HUB_OFFLINE="1")
        assert offline.startswith(f"refused: the Hub cannot be reached and {REPO} is not, or not")
        hub.cuts.clear()
        hub.seen.clear()
        folder = Path(fetch(hub.url, tmp_path)[0])
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == STUBS
        fetched = {s.path.rpartition("/")[2] for s in hub.seen if "resolve" in s.path}
        assert fetched == {"model.safetensors"}


GATED = (
    f"refused: {REPO} is gated: accept its licence at https://huggingface.co/{REPO}, then set "
    "HF_TOKEN to a token of that account or run `hf auth login`"
)
NOT_FOUND = (
    f"refused: there is no folder '{REPO}' and no repository of that name on the Hub; check the "
    "spelling, or, if it is private, set HF_TOKEN or run `hf auth login`"
)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, GATED),
        (403, {"X-Error-Code": "GatedRepo"}, GATED),
        (403, {}, GATED),
        (401, {"X-Error-Code": "RepoNotFound"}, NOT_FOUND),
        (404, {"X-Error-Code": "RepoNotFound"}, NOT_FOUND),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            f"refused: the Hub refused the token for {REPO}; set HF_TOKEN or run "
            "`hf auth login` again",
        ),
        (500, {}, f"refused: the Hub answered 500 for {REPO}; try again later"),
    ],
)
def test_what_the_hub_refuses(
    tmp_path: Path, status: int, headers: dict[str, str], expected: str
) -> None:
    with FakeHub(REPO, {}, refusal=(status, headers)) as hub:
        assert fetch(hub.url, tmp_path)[0] == expected


def test_no_network_and_nothing_cached(tmp_path: Path) -> None:
    with FakeHub(REPO, {}) as hub:
        url = hub.url
    answer, _ = fetch(url, tmp_path)
    assert answer.startswith(f"refused: the Hub cannot be reached and {REPO} is not, or not all")


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("pipecat_personaplex.checkpoint.hub.snapshot_download", full)
    with pytest.raises(DownloadError, match=f"no space is left for {REPO}; free some"):
        resolve(REPO, progress=False)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("pipecat_personaplex.checkpoint.hub.snapshot_download", denied)
    with pytest.raises(DownloadError, match=r"cache cannot be written \(/somewhere\)"):
        resolve(REPO, progress=False)


def test_an_existing_folder_needs_no_hub() -> None:
    assert resolve(str(CHECKPOINT), progress=False) == CHECKPOINT


@pytest.mark.parametrize(
    "model",
    [
        "",
        "personaplex",
        "/no/such/folder",
        "./folder",
        "../x",
        "a/..",
        "a/b/c",
        "a/../b",
        "a..b/c",
        "-/x",
        "models--x/y",
        "~/model",
        "nvidia/x\n",
        "nvidia/x\0",
        "https://huggingface.co/nvidia/x",
        "C:\\models\\x",
        "n" * 5000 + "/x",
    ],
)
def test_what_is_neither_a_folder_nor_a_repo_id(model: str) -> None:
    with pytest.raises(DownloadError, match="is neither an existing folder nor a Hugging Face"):
        resolve(model, progress=False)
