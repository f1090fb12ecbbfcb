"""The Prometheus metrics: counting, exposition for one worker and for several, and documentation."""

from __future__ import annotations

import asyncio
import math
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pybreaker
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from api.breaker.state import CallOutcome, State, Transition
from api.endpoints.middleware import HttpMetrics
from api.errors import UpstreamFault
from api.observability.metric_names import ALL_METRICS, REQUEST_BUCKETS
from api.observability.metric_series import OUTCOMES, STATES, BreakerMetrics, add_in_file
from api.observability.metrics import Metrics
from api.observability.worker_facts import TICK, LoopLag
from api.observability.worker_files import WorkerFilesCollector
from api.ports.answer_cache import StoreMemory
from api.ports.answer_quality import FalseHitRate, QualityState
from api.values import CacheStatus, Usage
from tests.support.waiting import wait_until_async

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, "1.2.3")


def test_an_answered_query_counts_once_and_in_each_timing(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.query_answered(CacheStatus.HIT, "semantic", {"total": 0.012, "embed": 0.006, "cache": 0.001})

    value = registry.get_sample_value
    assert value("ragherd_queries_total", {"status": "hit", "kind": "semantic"}) == 1
    assert value("ragherd_queries_total", {"status": "hit", "kind": "exact"}) == 0
    assert value("ragherd_query_stage_duration_seconds_sum", {"stage": "embed"}) == 0.006
    assert value("ragherd_query_stage_duration_seconds_count", {"stage": "generate"}) is None


def test_counters_of_failures_start_at_zero(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.breakers.known("ollama")

    value = registry.get_sample_value
    assert value("ragherd_upstream_faults_total", {"fault": "busy"}) == 0
    assert value("ragherd_cache_lookups_total", {"result": "miss"}) == 0
    assert value("ragherd_circuitbreaker_calls_total", {"name": "ollama", "outcome": "slow_failed"}) == 0
    assert value("ragherd_circuitbreaker_not_permitted_calls_total", {"name": "ollama"}) == 0
    opened = {"name": "ollama", "from_state": "half_open", "to_state": "open"}
    assert value("ragherd_circuitbreaker_transitions_total", opened) == 0  # otherwise increase() misses the first


def test_the_breaker_is_in_exactly_one_state(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.breakers.state("ollama", "closed")
    metrics.breakers.state("ollama", "open")

    states = {
        state: registry.get_sample_value("ragherd_circuitbreaker_state", {"name": "ollama", "state": state})
        for state in ("closed", "open", "half_open")
    }
    assert states == {"closed": 0, "open": 1, "half_open": 0}


def test_every_telemetry_method_updates_its_metric(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.generated(Usage(prompt_tokens=7, completion_tokens=3))
    metrics.cache_stored()
    metrics.cache_evicted(2)
    metrics.cache_invalidated("tenant", 3)
    metrics.upstream_failed(UpstreamFault.CONNECT_FAILED)
    metrics.pool_is(active=2, idle=3, waiting=4)
    metrics.pool_opened(5)
    metrics.pool_request()
    metrics.pool_timeout()
    metrics.redis_is(up=True, breaker_up=True)
    metrics.redis_failed("find")
    metrics.redis_memory_is([StoreMemory("main", 900, 0.9, 3)])
    metrics.worker_started()
    metrics.query_failed()
    metrics.cache_looked_up("exact")
    metrics.breakers.rates("ollama", failure=25.0, slow=50.0)
    metrics.breakers.lost_probes("ollama", 2)
    metrics.breakers.store("ollama", local=True)
    metrics.bulkhead_is("ollama", in_use=2, waiting={"user": 5}, local=True)
    metrics.bulkhead_admitted("ollama", "user", 0.5)
    metrics.bulkhead_rejected("ollama", "deadline", "batch")

    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("ragherd_generation_tokens_total", (("direction", "prompt"),)): 7,
        ("ragherd_generation_tokens_total", (("direction", "completion"),)): 3,
        ("ragherd_cache_stores_total", ()): 1,
        ("ragherd_cache_evictions_total", ()): 2,
        ("ragherd_semantic_cache_invalidations_total", (("kind", "tenant"),)): 3,
        ("ragherd_upstream_faults_total", (("fault", "connect_failed"),)): 1,
        ("ragherd_pool_connections", (("state", "active"),)): 2,
        ("ragherd_pool_connections", (("state", "idle"),)): 3,
        ("ragherd_pool_waiting", ()): 4,
        ("ragherd_pool_connections_opened_total", ()): 5,
        ("ragherd_pool_requests_total", ()): 1,
        ("ragherd_pool_timeouts_total", ()): 1,
        ("ragherd_redis_up", ()): 1,
        ("ragherd_redis_memory_used_bytes", (("store", "main"),)): 900,
        ("ragherd_redis_memory_used_ratio", (("store", "main"),)): 0.9,
        ("ragherd_redis_evicted_keys", (("store", "main"),)): 3,
        ("ragherd_workers_started_total", ()): 1,
        ("ragherd_redis_errors_total", (("operation", "find"),)): 1,
        ("ragherd_queries_total", (("kind", "none"), ("status", "error"))): 1,
        ("ragherd_cache_lookups_total", (("result", "exact"),)): 1,
        ("ragherd_circuitbreaker_failure_rate", (("name", "ollama"),)): 25,
        ("ragherd_circuitbreaker_slow_call_rate", (("name", "ollama"),)): 50,
        ("ragherd_circuitbreaker_lost_probes_total", (("name", "ollama"),)): 2,
        ("ragherd_circuitbreaker_store_local", (("name", "ollama"),)): 1,
        ("ragherd_bulkhead_in_use", (("name", "ollama"),)): 2,
        ("ragherd_bulkhead_waiting", (("name", "ollama"), ("priority", "user"))): 5,
        ("ragherd_bulkhead_store_local", (("name", "ollama"),)): 1,
        ("ragherd_bulkhead_wait_seconds_sum", (("name", "ollama"), ("priority", "user"))): 0.5,
        ("ragherd_bulkhead_rejected_total", (("name", "ollama"), ("priority", "batch"), ("reason", "deadline"))): 1,
    }
    assert {key: registry.get_sample_value(key[0], dict(key[1])) for key in expected} == expected


def test_a_share_that_is_no_longer_known_is_not_exposed(registry: CollectorRegistry, metrics: Metrics) -> None:
    rate = FalseHitRate(0.2, 0.1, 0.3, 40)
    metrics.quality_is(QualityState(rate=rate, by_kind={"semantic": rate}))
    assert registry.get_sample_value("ragherd_cache_false_hit_samples", {"kind": "semantic"}) == 40
    metrics.quality_is(QualityState())
    for kind in ("all", "semantic"):
        labels = {"kind": kind, "bound": "estimate"}
        assert math.isnan(registry.get_sample_value("ragherd_cache_false_hit_rate", labels) or 0.0)
        assert registry.get_sample_value("ragherd_cache_false_hit_samples", {"kind": kind}) == 0


def test_only_the_worker_that_caused_a_transition_counts_it(registry: CollectorRegistry, metrics: Metrics) -> None:
    listener = BreakerMetrics(metrics.breakers, "host-1")
    breaker = pybreaker.CircuitBreaker(name="ollama")
    labels = {"name": "ollama", "from_state": "closed", "to_state": "open"}

    listener.transition(breaker, _opened(by="host-2"))
    assert registry.get_sample_value("ragherd_circuitbreaker_transitions_total", labels) is None
    assert registry.get_sample_value("ragherd_circuitbreaker_state", {"name": "ollama", "state": "open"}) == 1

    listener.transition(breaker, _opened(by="host-1"))
    assert registry.get_sample_value("ragherd_circuitbreaker_transitions_total", labels) == 1


def _opened(by: str) -> Transition:
    return Transition(State.CLOSED, State.OPEN, "failures", by, epoch=1, wait_ms=60_000, at_ms=0)


def test_every_breaker_state_and_outcome_has_a_label() -> None:
    assert set(STATES) == set(State)
    assert set(OUTCOMES) == set(CallOutcome)


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4", b"\n"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", b"# EOF\n"),
    ],
)
def test_the_exposition_format_follows_the_accept_header(
    metrics: Metrics, accept: str, content_type: str, end: bytes
) -> None:
    body, given = metrics.exposition(accept)

    assert given.startswith(content_type)
    assert body.endswith(end)
    assert b'ragherd_build_info{python_version="' in body


WORKER = """
import sys
from prometheus_client import CollectorRegistry
from api.values import CacheStatus
from api.observability.metrics import Metrics
from api.observability.worker_files import WorkerFilesCollector
from tests.support.waiting import wait_until_async
metrics = Metrics(CollectorRegistry(), "1")
metrics.query_answered(CacheStatus.MISS, None, {"total": 1.0})
metrics.pool_is(active=2, idle=0, waiting=0)
metrics.redis_is(up=sys.argv[1] == "up", breaker_up=True)
metrics.breakers.state("ollama", sys.argv[2])
if len(sys.argv) > 3:
    sys.stdout.write(metrics.exposition()[0].decode())
"""


@pytest.mark.slow
def test_metrics_of_several_workers_are_summed(tmp_path: Path) -> None:
    _worker(tmp_path, "up", "closed")
    text = _worker(tmp_path, "down", "open", "show")

    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["ragherd_queries_total", (("kind", "none"), ("status", "miss"))] == 2
    assert samples["ragherd_pool_connections", (("state", "active"),)] == 4
    assert samples["ragherd_redis_up", ()] == 0
    states = {key[1][1][1]: value for key, value in samples.items() if key[0] == "ragherd_circuitbreaker_state"}
    assert states == {"closed": 0, "open": 1, "half_open": 0}


def _worker(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


async def _greet(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def _fail(request: Any) -> PlainTextResponse:
    raise RuntimeError("broken")


@pytest.fixture
def client(metrics: Metrics) -> TestClient:
    mounted = Starlette(routes=[Route("/{name}", _greet)])
    app = Starlette(routes=[Route("/documents/{id}", _greet), Route("/broken", _fail), Mount("/static", mounted)])
    return TestClient(HttpMetrics(app, metrics), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/documents/7", {"method": "GET", "route": "/documents/{id}", "status": "200"}),
        ("POST", "/documents/7", {"method": "POST", "route": "/documents/{id}", "status": "405"}),
        ("GET", "/nowhere/7", {"method": "GET", "route": "unmatched", "status": "404"}),
        ("BREW", "/nowhere/7", {"method": "OTHER", "route": "unmatched", "status": "404"}),
        ("GET", "/broken", {"method": "GET", "route": "/broken", "status": "500"}),
    ],
)
def test_requests_are_timed_by_route_template(
    registry: CollectorRegistry, client: TestClient, method: str, path: str, labels: dict[str, str]
) -> None:
    client.request(method, path)

    assert registry.get_sample_value("ragherd_http_request_duration_seconds_count", labels) == 1
    assert registry.get_sample_value("ragherd_http_requests_in_flight") == 0


def test_a_mounted_application_adds_no_labels_per_path(registry: CollectorRegistry, client: TestClient) -> None:
    client.get("/static/a")
    client.get("/static/b")

    routes = {
        sample.labels["route"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "ragherd_http_request_duration_seconds_count"
    }
    assert len(routes) == 1
    assert not routes & {"/static/a", "/static/b"}


async def test_requests_in_flight_are_counted(registry: CollectorRegistry, metrics: Metrics) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(registry.get_sample_value("ragherd_http_requests_in_flight"))

    await HttpMetrics(app, metrics)({"type": "http", "method": "GET", "path": "/"}, None, None)  # type: ignore[arg-type]

    assert seen == [1]
    assert registry.get_sample_value("ragherd_http_requests_in_flight") == 0


def test_metric_names_follow_the_conventions() -> None:
    for spec in ALL_METRICS:
        assert re.fullmatch(r"ragherd_[a-z_]+", spec.name)
        assert spec.name.endswith("_total") == (spec.type == "counter"), spec.name
        assert bool(spec.buckets) == (spec.type == "histogram"), spec.name
    assert len({spec.name for spec in ALL_METRICS}) == len(ALL_METRICS)


def test_the_page_lists_exactly_these_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(ragherd_[a-z_]+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)

    listed = {
        name: (kind, tuple(re.findall(r"`([a-z_]+)`", labels)), text.strip()) for name, kind, labels, text in rows
    }
    assert listed == {spec.name: (spec.type, spec.labels, spec.help) for spec in ALL_METRICS}
    assert len(rows) == len(ALL_METRICS)


def test_an_incomplete_file_of_a_starting_worker_fails_no_scrape(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()
    assert list(WorkerFilesCollector(CollectorRegistry(), str(tmp_path)).collect()) == []


async def test_event_loop_lag_is_measured(registry: CollectorRegistry, metrics: Metrics) -> None:
    def late(seconds: str) -> float:
        return registry.get_sample_value("ragherd_event_loop_lag_seconds_bucket", {"le": seconds}) or 0.0

    measuring = asyncio.create_task(LoopLag(metrics).keep_measuring())
    await asyncio.sleep(0)  # it has started to wait
    time.sleep(TICK + 0.3)
    await wait_until_async(lambda: _resolved(late("+Inf") > 0))
    measuring.cancel()
    assert late("0.25") == 0
    assert (registry.get_sample_value("ragherd_event_loop_lag_seconds_sum") or 0.0) >= 0.3


async def test_the_tasks_of_the_event_loop_are_counted(registry: CollectorRegistry, metrics: Metrics) -> None:
    others = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    before = len(asyncio.all_tasks())
    measuring = asyncio.create_task(LoopLag(metrics).keep_measuring())
    await asyncio.sleep(0)
    assert registry.get_sample_value("ragherd_event_loop_tasks") == before + 1
    for task in (*others, measuring):
        task.cancel()


async def _resolved(value: object) -> object:
    return value


COUNTING = """
from prometheus_client import CollectorRegistry
from api.observability.metric_names import REQUEST_BUCKETS
from api.observability.metric_series import add_in_file
from api.observability.metrics import Metrics
from api.values import CacheStatus
metrics = Metrics(CollectorRegistry(), "1")
assert metrics._add is add_in_file
for number in range(400):  # the file grows
    for seconds in (REQUEST_BUCKETS[3], 0.0, 1e9):
        metrics.request_ended("GET", f"/{number}", 200, seconds)
metrics.query_answered(CacheStatus.HIT, "exact", {"total": 0.5}, "exact")
metrics._families[NAMES.HTTP_REQUEST_DURATION]["GET", "/7", "200"].observe(REQUEST_BUCKETS[3])
metrics.cache_looked_up("exact")
print(metrics.exposition()[0].decode())
"""


class WriteOnlyFile:
    """A metrics file in which each value is replaced at once: `pack_into` is refused, because it clears it first."""

    def __init__(self) -> None:
        self._m = self
        self.values: dict[int, float] = {}

    def __setitem__(self, place: slice, written: bytes) -> None:
        assert (place.stop - place.start, place.start % 8) == (8, 0), "a reader sees all of a value or none"
        self.values[place.start] = struct.unpack("d", written)[0]


def test_a_scrape_never_sees_a_count_that_is_being_written() -> None:
    file, value = WriteOnlyFile(), Mock(_value=1e6)

    add_in_file([((value, file, 64), 1), ((value, file, 64), 0.5)])

    assert file.values == {64: value._value} == {64: 1_000_001.5}


@pytest.mark.slow
def test_values_written_directly_are_those_of_the_library(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = f"from api.observability import metric_names as NAMES\n{COUNTING}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    values = {
        (sample.name, sample.labels.get("route"), sample.labels.get("le"), sample.labels.get("result")): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }

    name = "ragherd_http_request_duration_seconds"
    below, bound = f"{REQUEST_BUCKETS[2]}", f"{REQUEST_BUCKETS[3]}"
    for number in range(400):
        route, more = f"/{number}", int(number == 7)
        assert values[f"{name}_bucket", route, below, None] == 1
        assert values[f"{name}_bucket", route, bound, None] == 2 + more
        assert values[f"{name}_bucket", route, "+Inf", None] == values[f"{name}_count", route, None, None] == 3 + more
    assert values[f"{name}_sum", "/7", None, None] == pytest.approx(1e9 + 2 * REQUEST_BUCKETS[3])
    assert values["ragherd_cache_lookups_total", None, None, "exact"] == 2
