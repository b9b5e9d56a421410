"""The Kubernetes example agrees with itself, the image and the command line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from starlette.routing import Route

from pipecat_personaplex import __version__
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.app import create_health_app
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.state import ServerState
from tests.docker.files import (
    DOCKER,
    documents,
    options_of,
    serve_environment,
    serve_options,
    stage,
)

OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (each["kind"], each["metadata"]["name"]): each
    for each in documents("kubernetes")
    if "metadata" in each
}
ENGINE = OBJECTS["StatefulSet", "engine"]["spec"]
POD = ENGINE["template"]["spec"]
(CONTAINER,) = POD["containers"]
OPTIONS = options_of(CONTAINER["args"])


def test_options_and_variables_of_the_engine_exist() -> None:
    assert CONTAINER["args"][0] == "serve"
    assert set(OPTIONS) <= set(serve_options())
    ours = {each["name"] for each in CONTAINER["env"] if each["name"].startswith("PERSONAPLEX_")}
    assert ours <= serve_environment()


def test_the_image_is_of_this_version() -> None:
    assert CONTAINER["image"].endswith(f"/personaplex-engine:{__version__}")


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_request_existing_pages(probe: str) -> None:
    config = ServerConfig()
    app = create_health_app(ServerState(config, "model", AdmissionController(config)))
    pages = {route.path for route in app.routes if isinstance(route, Route)}
    assert CONTAINER[probe]["httpGet"]["path"] in pages
    assert CONTAINER[probe]["httpGet"]["port"] == "health"


def test_only_a_failed_engine_is_restarted() -> None:
    # /readyz is 503 while the server is full, and a restart would end every call.
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_the_engine_has_time_to_drain() -> None:
    assert POD["terminationGracePeriodSeconds"] > float(OPTIONS["--drain-seconds"]) + 5


def test_ports_agree() -> None:
    port = int(OPTIONS["--port"])
    health = int(OPTIONS["--health-port"])
    assert CONTAINER["ports"] == [
        {"name": "http", "containerPort": port},
        {"name": "health", "containerPort": health},
    ]
    for name in ("engine", "engine-any"):
        (exposed,) = OBJECTS["Service", name]["spec"]["ports"]
        assert exposed == {"name": "http", "port": port, "targetPort": "http"}


def test_selectors_match_the_pods() -> None:
    labels = ENGINE["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    selectors = [
        ENGINE["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        OBJECTS["Service", "engine"]["spec"]["selector"],
        OBJECTS["Service", "engine-any"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget", "engine"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy", "engine"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert ENGINE["serviceName"] == "engine"


def test_full_servers_stay_resolvable() -> None:
    service = OBJECTS["Service", "engine"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


def test_the_pod_is_locked_down_as_the_image_allows() -> None:
    user = POD["securityContext"]["runAsUser"]
    assert f"USER {user}:{POD['securityContext']['runAsGroup']}\n" in stage("engine")
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_files_of_the_command_line_are_mounted() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    secret = OBJECTS["Secret", "personaplex"]
    files = {f"{mounts['keys']}/{name}" for name in secret["stringData"]}
    wanted = {OPTIONS["--api-key-file"], *(each["value"] for each in CONTAINER["env"])}
    assert {path for path in wanted if path.startswith("/")} == files
    volumes = {volume["name"] for volume in POD["volumes"]}
    claims = {claim["metadata"]["name"] for claim in ENGINE["volumeClaimTemplates"]}
    assert set(mounts) == volumes | claims
    assert f"HF_HOME={mounts['cache']}/" in stage("engine")


def test_the_example_secret_is_not_applied() -> None:
    folder = DOCKER / "kubernetes"
    applied = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    others = {"kustomization.yaml", "secret.example.yaml"}
    assert set(applied) | others == {path.name for path in folder.glob("*.yaml")}
    assert others.isdisjoint(applied)
