"""Prometheus and Grafana query only metrics that the server exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS
from pipecat_personaplex.interface import EngineStats
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.metrics import Metrics
from tests.docker.files import DOCKER, options_of, read_yaml

DASHBOARD: dict[str, Any] = json.loads(
    (DOCKER / "grafana" / "dashboards" / "personaplex.json").read_text()
)
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANEL_QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [
    *PANEL_QUERIES,
    *(rule["expr"] for rule in RULES),
    *(variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]),
]


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Names of the exported metrics, each with its labels."""
    stats = EngineStats(
        healthy=True,
        sessions=0,
        queued_frames=0,
        max_sessions=1,
        steps=0,
        frames=0,
        late_frames=0,
        refused=0,
        step_p50_ms=0.0,
        step_p99_ms=0.0,
        step_seconds_total=0.0,
        step_histogram=(0,) * (len(STEP_BOUNDS_MS) + 1),
        prefix_hits=0,
        prefix_misses=0,
        prefix_bytes=0,
    )
    metrics = Metrics(lambda: stats, AdmissionController(ServerConfig()))
    metrics.sessions_opened.labels("/v1/session")
    labels: dict[str, set[str]] = {}
    for line in metrics.render().decode().splitlines():
        if found := re.match(r"(personaplex_\w+)(?:\{(.*)\})? ", line):
            labels.setdefault(found[1], set()).update(re.findall(r"(\w+)=", found[2] or ""))
    return labels


def test_there_are_queries() -> None:
    assert len(PANEL_QUERIES) > 15 and len(RULES) > 5


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_uses_exported_metrics_and_labels(
    query: str, exported: dict[str, set[str]]
) -> None:
    asked = set(re.findall(r"personaplex_\w+", query))
    assert asked <= set(exported)
    assert asked or "up{" in query
    known = set().union(*(exported[name] for name in asked)) | {"instance", "job"}
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= known, query


@pytest.mark.parametrize("query", PANEL_QUERIES)
def test_a_panel_includes_only_the_selected_servers(query: str) -> None:
    assert len(re.findall(r"personaplex_\w+", query)) == query.count('{instance=~"$instance"}')


def test_legends_use_labels_of_the_result() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
                assert label in (grouped[1] if grouped else "instance"), panel["title"]


def test_the_step_time_panel_has_a_threshold_at_80_ms() -> None:
    (panel,) = [each for each in DASHBOARD["panels"] if each["title"] == "Step time, percentiles"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == 0.08
    # An interpolated percentile is exact only at the bound of a bucket.
    assert 80 in STEP_BOUNDS_MS


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_panel_uses_the_provisioned_datasource() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    asked = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    assert asked == {source["uid"]}


def test_every_alert_has_severity_and_description() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_alert_for_a_server_that_is_down_fires_without_any_series() -> None:
    """A server that is gone is in DNS no more, and its series ends."""
    (rule,) = [each for each in RULES if each["alert"] == "PersonaPlexDown"]
    series = 'up{job="personaplex"}'
    assert rule["expr"] == f"{series} == 0 or absent({series})"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_alerts_pass_their_own_tests() -> None:
    tests = DOCKER / "prometheus" / "alerts_test.yaml"
    ended = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_scrapes_the_engines_port() -> None:
    compose = read_yaml(DOCKER / "compose.yaml")["services"]
    (job,) = PROMETHEUS["scrape_configs"]
    (target,) = job["dns_sd_configs"]
    (name,) = target["names"]
    assert str(target["port"]) == options_of(compose[name]["command"])["--health-port"]
    assert any(f'job="{job["job_name"]}"' in rule["expr"] for rule in RULES)
