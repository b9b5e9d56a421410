"""Model names: downloads from a fake Hub, error messages, and what ``auto`` resolves to.

``huggingface_hub`` reads its environment variables on import, so tests of downloads run the client
in a process of their own.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint import hub as hub_module
from pipecat_personaplex.checkpoint.hub import RELEASE, resolve_folder, resolve_model
from pipecat_personaplex.errors import DownloadError
from tests.golden_data import CHECKPOINT
from tests.helpers.hub import COMMIT, FakeHub, resetting_server
from tests.helpers.logs import recorded

REPO = "nvidia/tiny-personaplex"
TOKEN = "hf_averysecrettoken"
FILES = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
# Small files, for tests in which the content does not matter.
STUBS = {name: name.encode() for name in FILES} | {"config.json": b"{}"}

RESOLVE = """
import sys
from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.errors import DownloadError
try:
    print(resolve_folder(sys.argv[1], progress=sys.argv[2] == "bars"))
except DownloadError as error:
    print("refused:", error)
"""


def fetch(
    url: str,
    home: Path,
    *,
    repo: str = REPO,
    bars: bool = False,
    program: str = RESOLVE,
    **environment: str,
) -> tuple[str, str]:
    """Call ``resolve_folder`` in a new process; return its output and its stderr."""
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
        [sys.executable, "-c", program, repo, "bars" if bars else "none"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert TOKEN not in done.stdout + done.stderr
    output = done.stdout.rstrip("\n")
    assert "\n" not in output
    return output, done.stderr


def test_a_repository_is_downloaded_once_and_then_needs_no_network(tmp_path: Path) -> None:
    others = {"README.md": b"", ".gitattributes": b"", "voices/x.pt": b""}
    with FakeHub(REPO, {**FILES, **others}) as hub:
        output, stderr = fetch(hub.url, tmp_path)
        assert {seen.authorization for seen in hub.seen} == {f"Bearer {TOKEN}"}
        assert "%" not in stderr
        folder = Path(output)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
        hub.seen.clear()
        assert fetch(hub.url, tmp_path)[0] == output
        assert not [seen for seen in hub.seen if "resolve" in seen.path]
        url = hub.url
    # The server has stopped.
    assert fetch(url, tmp_path)[0] == output
    assert fetch(url, tmp_path, HF_HUB_OFFLINE="1")[0] == output


def test_a_complete_cache_is_used_behind_a_firewall_that_resets_connections(
    tmp_path: Path,
) -> None:
    with FakeHub(REPO, {**FILES, "README.md": b""}) as hub:
        output, _ = fetch(hub.url, tmp_path)
    with resetting_server() as url:
        again, log = fetch(url, tmp_path)
    assert again == output
    assert "the complete snapshot" in log


def test_a_revision_that_does_not_exist(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS) as hub:
        hub.refusal = 404, {"X-Error-Code": "RevisionNotFound"}
        output, _ = fetch(hub.url, tmp_path, repo=f"{REPO}@typo")
    assert output == f"refused: {REPO} has no revision 'typo' on the Hub; check the spelling"


def test_progress_bars_are_drawn_if_requested(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS) as hub:
        assert "%" in fetch(hub.url, tmp_path, bars=True)[1]


def test_an_interrupted_download_resumes(tmp_path: Path) -> None:
    # The client writes to disk in chunks of 10 MB.
    weights = bytes(range(256)) * (25 << 12)
    with FakeHub(REPO, {**STUBS, "model.safetensors": weights}) as hub:
        hub.cuts["model.safetensors"] = 1
        folder = Path(fetch(hub.url, tmp_path)[0])
        ranges = [seen.range for seen in hub.downloads("model.safetensors")]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert ranges == [None, "bytes=10485760-"]


def test_a_failed_download_is_reported_and_can_be_repeated(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS, cuts={"model.safetensors": 99}) as hub:
        output, _ = fetch(hub.url, tmp_path)
        assert output.startswith(f"refused: the download of {REPO} broke off (")
        assert output.endswith("again: complete files are not downloaded again")
        assert "); run the same command again" in output
        offline, _ = fetch(hub.url, tmp_path, HF_HUB_OFFLINE="1")
        assert offline.startswith(f"refused: the Hub cannot be reached and {REPO} is not, or not")
        hub.cuts.clear()
        hub.seen.clear()
        folder = Path(fetch(hub.url, tmp_path)[0])
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == STUBS
        downloaded = {s.path.rpartition("/")[2] for s in hub.seen if "resolve" in s.path}
        assert downloaded == {"model.safetensors"}


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
def test_each_refusal_of_the_hub_has_its_own_message(
    tmp_path: Path, status: int, headers: dict[str, str], expected: str
) -> None:
    with FakeHub(REPO, {}, refusal=(status, headers)) as hub:
        assert fetch(hub.url, tmp_path)[0] == expected


def test_no_network_and_an_empty_cache(tmp_path: Path) -> None:
    with FakeHub(REPO, {}) as hub:
        url = hub.url
    output, _ = fetch(url, tmp_path)
    assert output.startswith(f"refused: the Hub cannot be reached and {REPO} is not, or not all")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("pipecat_personaplex.checkpoint.hub.snapshot_download", full)
    with pytest.raises(DownloadError, match=f"no space is left for {REPO}; free some"):
        resolve_folder(REPO, progress=False)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("pipecat_personaplex.checkpoint.hub.snapshot_download", denied)
    with pytest.raises(DownloadError, match=r"cache is read-only \(/somewhere\).*set HF_HOME"):
        resolve_folder(REPO, progress=False)


def test_a_read_only_cache_with_a_newer_commit_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The complete snapshot of the cache is used, and the log says why."""

    def read_only(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        if not local_files_only:
            raise OSError(errno.EROFS, "Read-only file system", "/cache/refs/main")
        return str(tmp_path)

    monkeypatch.setattr("pipecat_personaplex.checkpoint.hub.snapshot_download", read_only)
    for name, content in STUBS.items():
        (tmp_path / name).write_bytes(content)
    with recorded("WARNING") as log:
        assert resolve_folder(REPO, progress=False) == tmp_path
    [(*_, line)] = log.records
    assert line.startswith("the Hub's cache is read-only (/cache/refs/main) and not up to date;")
    assert "owner/name@revision" in line and f"snapshot {tmp_path.name} of the cache is" in line
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="read-only"):
        resolve_folder(REPO, progress=False)


def test_a_revision_can_be_pinned(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS) as hub:
        output, _ = fetch(hub.url, tmp_path, repo=f"{REPO}@v1.0")
        assert f"/api/models/{REPO}/revision/v1.0" in [seen.path for seen in hub.seen]
    assert {path.name for path in Path(output).iterdir()} == STUBS.keys()
    assert fetch(hub.url, tmp_path, repo=f"{REPO}@{COMMIT}")[0] == output  # without the Hub


NAMED = {
    "config.json": b'{"model_type": "moshi", "moshi_name": "lm.safetensors", '
    b'"mimi_name": "hf://nvidia/codec/mimi.safetensors", "lora_name": "lora/a.safetensors"}',
    "lm.safetensors": b"lm",
    "lora/a.safetensors": b"adapter",
    "tokenizer_spm_32k_3.model": b"tokenizer",
}


def test_files_have_the_names_that_the_config_gives_them(tmp_path: Path) -> None:
    """Moshi has no voices: the cache is complete without them."""
    others = {"model.safetensors": b"17 GB of another format", "README.md": b""}
    with FakeHub(REPO, {**NAMED, **others}) as hub:
        output, _ = fetch(hub.url, tmp_path, repo=f"{REPO}@v2")
        files = [path for path in Path(output).rglob("*") if path.is_file()]
        assert {str(path.relative_to(output)) for path in files} == NAMED.keys()
        url = hub.url
    assert fetch(url, tmp_path, repo=f"{REPO}@{COMMIT}", HF_HUB_OFFLINE="1")[0] == output


FIND_ADAPTER = """
import sys
from pipecat_personaplex.checkpoint.adapter_file import find_adapter
from pipecat_personaplex.errors import UserError
try:
    print(*find_adapter(sys.argv[1], progress=sys.argv[2] == "bars"))
except UserError as error:
    print("refused:", error)
"""


def test_an_adapter_is_downloaded_alone(tmp_path: Path) -> None:
    files = {
        "config.json": b'{"lora": true, "lora_rank": 8, "lora_scaling": 1.5}',
        "lora.safetensors": b"adapter",
        "model.safetensors": b"the base, which is not wanted",
    }
    with FakeHub(REPO, files) as hub:
        output, _ = fetch(hub.url, tmp_path, repo=f"{REPO}@v1.0", program=FIND_ADAPTER)
        assert not hub.downloads("model.safetensors")
        assert f"/api/models/{REPO}/revision/v1.0" in [request.path for request in hub.seen]
    path, rank, scaling = output.split(" ")
    assert Path(path).read_bytes() == b"adapter" and (rank, scaling) == ("8", "1.5")


def test_a_repository_without_an_adapter(tmp_path: Path) -> None:
    with FakeHub(REPO, STUBS) as hub:
        output, _ = fetch(hub.url, tmp_path, program=FIND_ADAPTER)
    assert output.startswith(f"refused: adapter {REPO}: there is no lora.safetensors in it; name")


def test_an_existing_folder_is_used_as_it_is() -> None:
    assert resolve_folder(str(CHECKPOINT), progress=False) == CHECKPOINT


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
def test_a_name_that_is_neither_a_folder_nor_a_repo_id(model: str) -> None:
    with pytest.raises(DownloadError, match="is neither an existing folder nor a Hugging Face"):
        resolve_folder(model, progress=False)


# What ``auto`` resolves to.

Hub = Callable[[str], None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A machine with a GPU and an empty cache; call the fixture with the URL of a fake Hub."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(hub_module, "try_to_load_from_cache", lambda repo, file: None)

    def use(url: str) -> None:
        monkeypatch.setattr(hub_module, "HfApi", lambda: HfApi(endpoint=url, token=False))

    use("http://127.0.0.1:1")  # no server
    return use


def note_for_nano(device: str = "auto") -> str:
    model, note = resolve_model("auto", device)
    assert model == "nano" and note is not None and "\n" not in note
    assert note.startswith("model: nano, a small demonstration (")
    return note


def test_a_name_other_than_auto_is_not_replaced(hub: Hub) -> None:
    for model in ("nano", "some/where", "./auto", "random-1b"):
        assert resolve_model(model, "auto") == (model, None)


def test_auto_is_nano_without_a_gpu(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA GPU" in note_for_nano()


def test_auto_is_the_release_with_a_gpu_and_access(hub: Hub) -> None:
    with FakeHub(RELEASE, {}) as server:
        hub(server.url)
        assert resolve_model("auto", "auto") == (RELEASE, f"model: {RELEASE}")


def test_a_cached_release_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "try_to_load_from_cache", lambda repo, file: "/cache/x")
    assert resolve_model("auto", "auto")[0] == RELEASE


def test_with_device_cpu_the_note_does_not_deny_the_gpu(hub: Hub) -> None:
    note = note_for_nano("cpu")
    assert "the requested device is the CPU" in note and "no CUDA GPU" not in note


@pytest.mark.parametrize(
    ("refusal", "cure"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}), "accept its licence at https://huggingface.co/nv"),
        ((401, {}), "hf auth login"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "check the spelling"),
        ((400, {}), "the Hub answered 400"),
    ],
)
def test_without_access_the_note_says_how_to_get_it(
    hub: Hub, refusal: tuple[int, dict[str, str]], cure: str
) -> None:
    with FakeHub(RELEASE, {}, refusal=refusal) as server:
        hub(server.url)
        assert cure in note_for_nano()


def test_without_a_network_the_note_does_not_mention_the_licence(hub: Hub) -> None:
    note = note_for_nano()
    assert "cannot be reached" in note and "licence" not in note


def test_an_engine_resolves_auto() -> None:
    config = EngineConfig(device="cpu", max_sessions=1)
    assert Engine.load("auto", config).voices == Engine.load("nano", config).voices


def test_a_folder_may_name_an_adapter_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"lora_name": "hf://{REPO}/a.safetensors"}}')
    with FakeHub(REPO, {"a.safetensors": b"adapter"}) as hub:
        output, _ = fetch(hub.url, tmp_path, repo=str(folder), program=FIND_ADAPTER)
    assert Path(output.split(" ")[0]).read_bytes() == b"adapter"
