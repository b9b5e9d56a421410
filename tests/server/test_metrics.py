from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS, Counters
from pipecat_personaplex.interface import EngineStats
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.metrics import Metrics


def stats(counters: Counters) -> EngineStats:
    return EngineStats(
        healthy=True,
        sessions=3,
        queued_frames=2,
        max_sessions=8,
        steps=counters.steps,
        frames=40,
        late_frames=1,
        refused=5,
        step_p50_ms=0,
        step_p99_ms=0,
        step_seconds_total=counters.step_seconds_total,
        step_histogram=tuple(counters.step_histogram),
        prefix_hits=7,
        prefix_misses=6,
        prefix_bytes=1 << 20,
    )


def samples(metrics: Metrics) -> dict[str, float]:
    """Return every sample by its name and its label, if any."""
    return {
        ":".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_metrics_without_an_engine() -> None:
    found = samples(Metrics(lambda: None, AdmissionController(ServerConfig())))
    assert found["personaplex_healthy"] == 0
    assert found["personaplex_connections"] == 0
    assert "personaplex_sessions" not in found


def test_metrics_of_the_engine() -> None:
    counters = Counters()
    for seconds in (0.004, 0.030, 0.0301, 0.079, 0.081, 2.0):
        counters.count_step(seconds)
    found = samples(Metrics(lambda: stats(counters), AdmissionController(ServerConfig())))
    assert found["personaplex_sessions"] == 3
    assert found["personaplex_max_sessions"] == 8
    assert found["personaplex_queued_frames"] == 2
    assert found["personaplex_frames_total"] == 40
    assert found["personaplex_late_frames_total"] == 1
    assert found["personaplex_prefix_hits_total"] == 7
    assert found["personaplex_prefix_misses_total"] == 6
    assert found["personaplex_prefix_bytes"] == 1 << 20
    assert found["personaplex_refusals_total:engine_full"] == 5
    buckets = {
        name.removeprefix("personaplex_step_seconds_bucket:"): value
        for name, value in found.items()
        if name.startswith("personaplex_step_seconds_bucket")
    }
    assert len(buckets) == len(STEP_BOUNDS_MS) + 1
    assert [buckets[le] for le in ("0.005", "0.03", "0.035", "0.075", "0.08", "0.1", "+Inf")] == [
        *(1, 2, 3, 3, 4, 5, 6)
    ]
    assert found["personaplex_step_seconds_count"] == counters.steps
    assert abs(found["personaplex_step_seconds_sum"] - 2.2241) < 1e-9


def test_metrics_of_the_server() -> None:
    admission = AdmissionController(ServerConfig())
    metrics = Metrics(lambda: None, admission)
    metrics.sessions_opened.labels("/v1/session").inc()
    metrics.sessions_opened.labels("/api/chat").inc(2)
    metrics.resumes.inc()
    metrics.messages_refused.inc(3)
    admission.refusals["access_denied"] += 4
    admission.start_draining()
    with admission.connection():
        found = samples(metrics)
    assert found["personaplex_sessions_opened_total:/v1/session"] == 1
    assert found["personaplex_sessions_opened_total:/api/chat"] == 2
    assert found["personaplex_resumes_total"] == 1
    assert found["personaplex_messages_refused_total"] == 3
    assert found["personaplex_refusals_total:access_denied"] == 4
    assert found["personaplex_connections"] == 1
    assert found["personaplex_draining"] == 1


def test_two_servers_in_a_process_have_separate_metrics() -> None:
    one, other = (Metrics(lambda: None, AdmissionController(ServerConfig())) for _ in range(2))
    one.resumes.inc()
    assert samples(other)["personaplex_resumes_total"] == 0
