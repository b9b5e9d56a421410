"""The shipped Serve config file is valid for the deployment."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import yaml

from pipecat_personaplex.errors import ConfigError
from tests.docker.files import DOCKER, serve_options

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
    # Ray's own modules, as they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CONFIG = yaml.safe_load((DOCKER / "ray" / "serve.yaml").read_text())
(APPLICATION,) = CONFIG["applications"]


def args(**changes: Any) -> Any:
    from pipecat_personaplex.server.ray_serve import RayArgs

    return RayArgs.model_validate(APPLICATION["args"] | changes)


def test_the_shipped_file_is_valid() -> None:
    assert APPLICATION["import_path"] == "pipecat_personaplex.server.ray_serve:build"
    shipped = args()
    assert shipped.limits.resume_seconds == 0
    # A stopped replica waits for its calls.
    assert 0 < shipped.limits.max_session_seconds <= shipped.drain_seconds
    assert CONFIG["http_options"]["port"] == serve_options()["--port"].default
    # A timeout would end longer conversations.
    assert CONFIG["http_options"]["request_timeout_s"] is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": {"max_session": 3}}, "max_session"),
        ({"engine": {"max_sessions": 0}}, "max_sessions"),
        ({"limits": {"resume_seconds": 5.0}}, "resume_seconds"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"min_replicas": 5}, "min_replicas"),
        ({"replicas": 2}, "replicas"),
    ],
)
def test_invalid_args_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError, ConfigError), match=named):
        args(**changes)


@pytest.mark.parametrize("most", [1, 4])
def test_a_request_is_a_session_and_a_slot(most: int) -> None:
    from pipecat_personaplex.server.ray_serve import build

    deployment: Any = build(APPLICATION["args"] | {"max_replicas": most})._bound_deployment
    slots = APPLICATION["args"]["engine"]["max_sessions"]
    assert deployment.max_ongoing_requests == slots
    config = deployment._deployment_config.autoscaling_config
    assert (config is None) == (most == 1)
    if config is not None:
        # Ray adds a replica before the last slot is in use.
        assert config.target_ongoing_requests < slots
