"""Prometheus and Grafana ask for nothing that the server does not say."""

from __future__ import annotations

import json
import re
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
    """Names that /metrics gives, and the labels each comes with."""
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
def test_a_query_asks_for_what_is_exported(query: str, exported: dict[str, set[str]]) -> None:
    asked = set(re.findall(r"personaplex_\w+", query))
    assert asked <= set(exported)
    assert asked or "up{" in query
    known = set().union(*(exported[name] for name in asked)) | {"instance", "job"}
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= known, query


@pytest.mark.parametrize("query", PANEL_QUERIES)
def test_a_panel_counts_only_the_servers_that_are_chosen(query: str) -> None:
    assert len(re.findall(r"personaplex_\w+", query)) == query.count('{instance=~"$instance"}')


def test_legends_name_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
                assert label in (grouped[1] if grouped else "instance"), panel["title"]


def test_the_step_times_have_a_line_at_80_ms() -> None:
    (panel,) = [each for each in DASHBOARD["panels"] if each["title"] == "Step time, percentiles"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == 0.08
    # An interpolated percentile is exact at a bucket's bound alone.
    assert 80 in STEP_BOUNDS_MS


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_panel_asks_the_datasource_that_is_provisioned() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    asked = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    assert asked == {source["uid"]}


def test_every_alert_says_what_it_means() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_looks_where_the_engine_is() -> None:
    compose = read_yaml(DOCKER / "compose.yaml")["services"]
    (job,) = PROMETHEUS["scrape_configs"]
    (target,) = job["dns_sd_configs"]
    (name,) = target["names"]
    assert str(target["port"]) == options_of(compose[name]["command"])["--port"]
    assert any(f'job="{job["job_name"]}"' in rule["expr"] for rule in RULES)
