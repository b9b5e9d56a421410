"""``personaplex serve`` and ``keys``; ``tests/server`` tests how a server drains."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path

import pytest
from websockets.sync.client import connect

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.cli import main
from pipecat_personaplex.server.auth import ApiKeys, new_key
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.runner import Address
from pipecat_personaplex.server.state import ServerState
from tests.docker.files import serve_options
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.commands import one_line
from tests.helpers.servers import ServeProcess, self_signed, trusting


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HOST", "PORT", "API_KEY_FILE"):
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.level, root.handlers[:] = before


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem that belong together, and other-key.pem that does not."""
    folder = tmp_path_factory.mktemp("certificates")
    other = tmp_path_factory.mktemp("other")
    self_signed(folder)
    self_signed(other)[1].rename(folder / "other-key.pem")
    subprocess.run(
        [
            *("openssl", "ec", "-in", folder / "key.pem", "-out", folder / "locked-key.pem"),
            *("-aes256", "-passout", "pass:secret"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def bad_files(tmp_path: Path, certificates: Path) -> Path:
    for file in certificates.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "text.pem").write_text("no certificate")
    (tmp_path / "bad-keys.txt").write_text("# ours\nbot 123\n")
    (tmp_path / "bad-keys.txt").chmod(0o600)
    return tmp_path


SERVE = ["serve", "--model", str(CHECKPOINT), "--device", "cpu", "--dtype", "float32"]
MISTAKES = {
    "port": (["--port", "65536"], ["--port"]),
    "port word": (["--port", "http"], ["--port", "see personaplex serve --help"]),
    "host": (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "no such address"]),
    "host of dots": (["--host", "a..b"], ["no such address"]),
    "not our host": (["--host", "192.0.2.1"], ["192.0.2.1", "annot assign requested address"]),
    "sessions": (["--max-sessions", "0"], ["--max-sessions"]),
    "device": (["--device", "tpu"], ["'tpu'"]),
    "drain": (["--drain-seconds", "-1"], ["drain_seconds", "-1"]),
    "idle": (["--idle-seconds", "0"], ["idle_seconds", "above 0"]),
    "total": (["--max-session-seconds", "nan"], ["max_session_seconds"]),
    "resume": (["--resume-seconds", "x"], ["--resume-seconds"]),
    "prompt": (["--max-prompt-chars", "-1"], ["--max-prompt-chars"]),
    "connections": (["--max-connections", "0"], ["--max-connections"]),
    "unsent frames": (["--max-unsent-frames", "0"], ["--max-unsent-frames"]),
    "queued frames": (["--max-queued-frames", "0"], ["--max-queued-frames"]),
    "prefix cache": (["--prefix-cache-bytes", "-1"], ["--prefix-cache-bytes"]),
    "prefill": (["--prefill-chunk", "0"], ["--prefill-chunk"]),
    "hello": (["--hello-seconds", "0"], ["hello_seconds", "above 0"]),
    "threads": (["--threads", "100000"], ["cpu_threads", "1024", "100000"]),
    "log level": (["--log-level", "loud"], ["log level", "'LOUD'"]),
    "origin": (["--allow-origin", "example.com"], ["https://example.com", "'example.com'"]),
    "voice": (["--add-voice", "owen.wav"], ["NAME=FILE", "'owen.wav'"]),
    "voice without file": (["--add-voice", "owen=no.wav"], ["owen=no.wav", "no file no.wav"]),
    "voice without name": (["--add-voice", "=owen.wav"], ["NAME=FILE"]),
    "no key file": (["--api-key-file", "none.txt"], ["none.txt cannot be read"]),
    "bad key file": (["--api-key-file", "bad-keys.txt"], ["bad-keys.txt, line 2"]),
    "no certificate": (["--ssl-certfile", "none.pem"], ["none.pem cannot be read: No such file"]),
    "key alone": (["--ssl-keyfile", "key.pem"], ["--ssl-keyfile needs --ssl-certfile"]),
    "no private key": (
        ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "none.pem"],
        ["none.pem cannot be read: No such file"],
    ),
    "certificate is text": (
        ["--ssl-certfile", "text.pem", "--ssl-keyfile", "key.pem"],
        ["--ssl-certfile text.pem", "not a certificate"],
    ),
    "certificate without key": (["--ssl-certfile", "cert.pem"], ["cert.pem", "not a certificate"]),
    "another's key": (
        ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "other-key.pem"],
        ["other-key.pem", "mismatch"],
    ),
    "locked key": (
        ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "locked-key.pem"],
        ["locked-key.pem", "unencrypted key"],
    ),
}


def never(*args: object, **kwargs: object) -> Engine:
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    bad_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mistake: str,
) -> None:
    monkeypatch.chdir(bad_files)
    given, expected = MISTAKES[mistake]
    monkeypatch.setattr(Engine, "load", never)
    assert main([*SERVE, "--port", "0", *given]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    *warnings, error = err.splitlines(keepends=True)
    assert all(line.startswith("warning: everyone who can reach") for line in warnings)
    assert all(part in one_line(error) for part in expected), err


def test_max_sessions_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONAPLEX_MAX_SESSIONS", "many")
    assert main([*SERVE, "--port", "0"]) == 2
    assert "PERSONAPLEX_MAX_SESSIONS" in one_line(capfd.readouterr().err)


def test_a_port_that_is_in_use(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*SERVE, "--port", str(port)]) == 2
    err = capfd.readouterr().err
    assert f"127.0.0.1, port {port}: Address already in use" in one_line(err)


def test_without_the_extra_packages(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "pipecat_personaplex.cli.serve.find_spec",
        lambda name: None if name == "uvicorn" else real(name),
    )
    assert main(SERVE) == 2
    line = one_line(capfd.readouterr().err)
    assert line == "error: the server needs uvicorn: pip install 'pipecat-personaplex[server]'\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model", "no-model"], "'no-model'"),
        (["--add-voice", "owen=none.wav"], "none.wav"),
        (["--device", "cuda:99"], "cuda:99 does not exist"),
    ],
)
def test_an_engine_that_cannot_be_loaded_ends_the_server(
    capfd: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert main([*SERVE, "--port", "0", *more]) == 2
    out, err = capfd.readouterr()
    logged, error = err.splitlines(keepends=True)[:-1], err.splitlines(keepends=True)[-1]
    assert out == "" and expected in one_line(error)
    assert all(" INFO " in line for line in logged), err


def test_the_process_with_everything(tmp_path: Path, certificates: Path) -> None:
    key, line = new_key("bot")
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{line}\n")
    certificate = certificates / "cert.pem"
    environment = {
        "PERSONAPLEX_HOST": "0.0.0.0",
        "PERSONAPLEX_PORT": "0",
        "PERSONAPLEX_API_KEY_FILE": str(keys),
    }
    with ServeProcess(
        *("--ssl-certfile", certificate, "--ssl-keyfile", certificates / "key.pem"),
        *("--max-sessions", 3, "--add-voice", f"owen={VOICE_SAMPLE}", "--log-json"),
        env=environment,
    ) as server:
        port = int(server.url.rsplit(":", 1)[1])
        assert server.stdout == (
            f"tiny-personaplex at https://0.0.0.0:{port}: wss://0.0.0.0:{port}/v1/session, "
            f"wss://0.0.0.0:{port}/api/chat\n"
        )
        bearer = {"Authorization": f"Bearer {key}"}
        trust = trusting(certificate)
        with connect(
            f"wss://localhost:{port}/v1/session",
            ssl=trust,
            additional_headers=bearer,
            proxy=None,
        ) as ws:
            hello = json.loads(ws.recv(30))
        assert (hello["model"], hello["max_sessions"]) == ("tiny-personaplex", 3)
        assert hello["voices"] == ["NATF2", "NATM1", "owen"]
        server.terminate()
        assert server.wait() == 0
    assert "warning: everyone" not in server.log
    assert key not in server.log
    records = [json.loads(line) for line in server.log.splitlines()]
    assert records and all(record["level"] == "INFO" for record in records)
    assert any(
        record["message"].startswith("draining for 30 s; sessions now: 0") for record in records
    )


def test_options_become_the_server_config(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[ServerState, Address]] = []

    class NoRunner:
        def __init__(self, state: ServerState, address: Address, load: object, pages: object):
            made.append((state, address))

        def run(self, announce: object) -> bool:
            return True

    monkeypatch.setattr("pipecat_personaplex.server.runner.ServerRunner", NoRunner)
    assert main(SERVE) == 0
    assert (
        main(
            [
                *SERVE,
                *("--host", "::1", "--port", "1234", "--max-prompt-chars", "1"),
                *("--idle-seconds", "2", "--max-session-seconds", "3", "--resume-seconds", "4"),
                *("--drain-seconds", "5", "--allow-origin", "*", "--allow-origin", "http://a"),
                *("--hello-seconds", "6", "--max-connections", "7", "--max-unsent-frames", "8"),
                *("--max-speed", "9"),
            ]
        )
        == 0
    )
    assert [(state.config, address) for state, address in made] == [
        (ServerConfig(), Address()),
        (
            ServerConfig(
                max_prompt_chars=1,
                idle_seconds=2,
                max_session_seconds=3,
                resume_seconds=4,
                drain_seconds=5,
                allow_origins=("*", "http://a"),
                hello_seconds=6,
                max_connections=7,
                max_unsent_frames=8,
                max_speed=9,
            ),
            Address("::1", 1234),
        ),
    ]


def test_options_become_the_engine_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loaded model is excluded from garbage collection while the server runs."""
    made: list[EngineConfig] = []

    class LoadOnly:
        def __init__(
            self,
            state: object,
            address: object,
            load: Callable[[], AbstractContextManager[object]],
            pages: object,
        ):
            self._load = load

        def run(self, announce: object) -> bool:
            assert gc.get_freeze_count() == 0
            with self._load():
                assert gc.get_freeze_count() > 10_000
            assert gc.get_freeze_count() == 0
            return True

    def load(model: str, config: EngineConfig, **options: object) -> AbstractContextManager[None]:
        made.append(config)
        return nullcontext()

    monkeypatch.setattr("pipecat_personaplex.server.runner.ServerRunner", LoadOnly)
    monkeypatch.setattr(Engine, "load", load)
    assert main(SERVE) == 0
    given = (
        *("--max-sessions", "2", "--max-queued-frames", "3"),
        *("--prefix-cache-bytes", "4", "--prefill-chunk", "5"),
    )
    assert main([*SERVE, *given]) == 0
    plain = EngineConfig(device="cpu", dtype="float32")
    assert made == [
        plain,
        replace(
            plain,
            max_sessions=2,
            max_queued_frames=3,
            prefix_cache_bytes=4,
            prefill_chunk=5,
        ),
    ]


def test_every_config_field_has_an_option() -> None:
    options = {name.removeprefix("--").replace("-", "_") for name in serve_options()}
    names = {"allow_origins": "allow_origin", "cpu_threads": "threads"}
    for config in (ServerConfig, EngineConfig):
        for field in fields(config):
            assert names.get(field.name, field.name) in options, field.name


def test_a_server_without_keys_for_everyone_is_warned_about(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.pem")
    assert main([*SERVE, "--host", "0.0.0.0", "--ssl-certfile", missing]) == 2
    warning, error = capfd.readouterr().err.splitlines()
    assert (
        warning.startswith("warning: everyone who can reach 0.0.0.0")
        and "--api-key-file" in warning
    )
    assert error.startswith("error: ")


def test_help_has_all_panels_and_imports_little() -> None:
    code = (
        "import sys; from pipecat_personaplex.cli import main; main(['serve', '--help']);"
        "assert not {'torch', 'numpy', 'uvicorn', 'starlette'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    for part in (
        "Model",
        "Address",
        "Clients",
        "Log",
        "Examples",
        "PERSONAPLEX_API_KEY_FILE",
        "/readyz",
    ):
        assert part in result.stdout


# Keys.


def test_a_new_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.txt"
    made = {}
    for name, more in (("bot", []), ("trial", ["--max-sessions", "2"])):
        assert main(["keys", "new", name, *more]) == 0
        out, err = capfd.readouterr()
        with file.open("a") as keys:
            keys.write(out)
        assert err.startswith(f"the key of {name}, which is shown only now: ")
        made[name] = err.split()[-1]
    keys = ApiKeys.read(file)
    assert {name: getattr(keys.client_of(key), "name", None) for name, key in made.items()} == {
        "bot": "bot",
        "trial": "trial",
    }
    trial = keys.client_of(made["trial"])
    assert trial is not None and trial.max_sessions == 2


@pytest.mark.parametrize(
    "arguments", [["a b"], [""], ["../bot"], ["bot", "--max-sessions", "0"], []]
)
def test_an_invalid_key_is_refused(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["keys", "new", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    one_line(err)
