"""compose.yaml, and the options and variables of the programs that it starts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pipecat_personaplex import __version__
from pipecat_personaplex.checkpoint.hub import NANO
from tests.docker.files import (
    DOCKER,
    ROOT,
    options_of,
    read_yaml,
    seconds,
    serve_environment,
    serve_options,
)

COMPOSE = read_yaml(DOCKER / "compose.yaml")
CPU = read_yaml(DOCKER / "compose.cpu.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
ENGINE = SERVICES["engine"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["mem_limit"] and service["pids_limit"] <= 1024


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ours_are_of_this_version(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert tag and tag != "latest"
    if "build" in SERVICES[name]:
        assert tag == __version__


def test_the_image_without_a_gpu_has_the_version_too() -> None:
    assert CPU["services"]["engine"]["image"] == f"{ENGINE['image']}-cpu"


def test_without_a_gpu_the_model_is_nano() -> None:
    engine = CPU["services"]["engine"]
    assert engine["environment"]["PERSONAPLEX_MODEL"] == NANO
    assert "volumes" not in engine
    assert "!pipecat_personaplex" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()


@pytest.mark.parametrize("compose", [COMPOSE, CPU], ids=["compose", "cpu"])
def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_every_secret_is_declared_and_used() -> None:
    used = {name for service in SERVICES.values() for name in secrets_of(service)}
    assert used == set(COMPOSE["secrets"])
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    for service in SERVICES.values():
        for value in [*service.get("environment", {}).values(), *service.get("command", ())]:
            _, found, name = str(value).partition("/run/secrets/")
            assert not found or name in secrets_of(service), value


def test_no_secret_can_be_committed() -> None:
    assert (DOCKER / "secrets" / ".gitignore").read_text().splitlines()[1:] == ["*", "!.gitignore"]


def test_options_and_variables_of_the_engine_exist() -> None:
    assert ENGINE["command"][0] == "serve"
    options = options_of(ENGINE["command"])
    assert set(options) <= set(serve_options())
    for service in (ENGINE, CPU["services"]["engine"]):
        ours = {name for name in service["environment"] if name.startswith("PERSONAPLEX_")}
        assert ours <= serve_environment()


def test_the_engine_has_time_to_drain() -> None:
    drain = float(options_of(ENGINE["command"])["--drain-seconds"])
    assert seconds(ENGINE["stop_grace_period"]) > drain + 5


def test_options_and_variables_of_the_bot_exist() -> None:
    bot = SERVICES["bot"]
    module, *arguments = bot["command"]
    explained = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    secrets = [secret["target"] for secret in bot["secrets"]]
    for name in [*bot["environment"], *secrets, *options_of(arguments)]:
        assert name in explained, name


def test_the_bot_finds_the_engine() -> None:
    port = options_of(ENGINE["command"])["--port"]
    health = options_of(ENGINE["command"])["--health-port"]
    assert ENGINE["environment"]["HEALTHCHECK_URL"] == f"http://127.0.0.1:{health}/healthz"
    assert SERVICES["bot"]["environment"]["PERSONAPLEX_ENGINE"] == f"ws://engine:{port}"


def secrets_of(service: dict[str, Any]) -> set[str]:
    named = service.get("secrets", ())
    return {each if isinstance(each, str) else each["source"] for each in named}
