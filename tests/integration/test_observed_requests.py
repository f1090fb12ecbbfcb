"""What a request leaves in the log of a real fleet, and at a collector of traces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from api.values import owner_of
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import ROOT, Gunicorn, free_port, gunicorns
from tests.support.otlp_collector import OtlpCollector, otlp_collector
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUESTION = {"question": "What is the capital of France?"}
PATIENT = {"REDIS_TIMEOUT": "1", "REDIS_REQUEST_BUDGET": "2"}
"""A busy test machine does not count as a lost Redis."""


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def start(ollama: StubProcess, redis_url: str, tmp_path: Path) -> Iterator[Any]:
    ollama.behaviour()
    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with gunicorns("api.asgi:app", tmp_path) as begin:

        def started(*, ready: bool = True, **settings: str) -> Gunicorn:
            shared = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "OLLAMA_WARM_UP": "false"}
            gunicorn: Gunicorn = begin(ready=ready, **{**shared, **PATIENT, **settings})
            return gunicorn

        yield started


def requests(gunicorn: Gunicorn) -> list[dict[str, Any]]:
    """Returns the access log. Every line of the log must be a JSON object."""
    lines = [json.loads(line) for line in gunicorn.lines()]
    return [line for line in lines if line["event"] == "request"]


def ask(gunicorn: Gunicorn, headers: dict[str, str] | None = None, *, stream: bool = False) -> Any:
    return gunicorn.client.post(f"{gunicorn.url()}/query", json={**QUESTION, "stream": stream}, headers=headers)


def test_each_request_leaves_one_line_with_its_outcome(start: Any, ollama: StubProcess) -> None:
    gunicorn = start(API_KEYS="acme=key-1", LLM_MODEL="llama3.2")
    key = {"Authorization": "Bearer key-1"}

    asked = [ask(gunicorn, {**key, "X-Request-ID": name}) for name in ("first", "second")]
    streamed = ask(gunicorn, key, stream=True)
    refused = ask(gunicorn)
    gunicorn.get("/health/live")
    gunicorn.client.delete(f"{gunicorn.url()}/api/nothing%0A%7B%22event%22%3A1%7D?question=secret")
    ollama.behaviour("status", status=400)
    failed = gunicorn.client.post(f"{gunicorn.url()}/query", json={"question": "And of Spain?"}, headers=key)

    wait_until(lambda: len(requests(gunicorn)) >= 6)
    found = {line["request_id"]: line for line in requests(gunicorn)}
    assert len(found) == len(requests(gunicorn)) == 6
    miss, hit = found["first"], found["second"]
    assert (miss["cache"], miss["backend"], miss["status"]) == ("miss", "ollama", 200)
    assert miss["completion_tokens"] == asked[0].json()["usage"]["completion_tokens"] > 0
    assert (hit["cache"], hit["kind"], hit["bytes"]) == ("hit", "exact", len(asked[1].content))
    assert miss["tenant_hash"] == hit["tenant_hash"] == owner_of("acme")
    assert (found[streamed.headers["x-request-id"]]["cache"]) == "hit"
    assert found[refused.headers["x-request-id"]]["error"] == "not-authenticated"
    assert found[failed.headers["x-request-id"]]["status"] == failed.status_code == 502
    assert {line["route"] for line in found.values()} == {"/query", "unmatched"}
    log = "\n".join(line for line in gunicorn.lines() if '"request"' in line)
    assert not [text for text in ("acme", "key-1", "secret", "France", "nothing") if text in log]


def test_the_access_log_can_be_off_or_sampled(start: Any) -> None:
    silent = start(ACCESS_LOG="false")
    sampled = start(ACCESS_LOG_HIT_RATE="0", LOG_QUESTIONS="true")
    assert [ask(silent).json()["cache"]["status"], ask(sampled).json()["cache"]["status"]] == ["miss", "hit"]
    other = sampled.client.post(f"{sampled.url()}/query", json={"question": "And of Spain?"})

    wait_until(lambda: requests(sampled))
    [line] = requests(sampled)
    assert (line["cache"], line["question"]) == ("miss", "And of Spain?")
    assert line["request_id"] == other.headers["x-request-id"]
    assert requests(silent) == []


# -- Traces ------------------------------------------------------------------------------------------------------------

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-ID": "r1"}
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
LATEST = {"OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"}
EMBEDDER = {"EMBEDDER": "ollama", "EMBED_MODEL": "nomic-embed-text", "LLM_MODEL": "llama3.2"}


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with otlp_collector() as made:
        yield made


def test_a_miss_is_a_tree_of_spans_in_the_callers_trace(
    start: Any, collector: OtlpCollector, ollama: StubProcess
) -> None:
    gunicorn = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-key=secret-key",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        API_KEYS="acme=key-1",
        **SOON,
        **LATEST,
        **EMBEDDER,
    )
    answer = ask(gunicorn, {**HEADERS, "Authorization": "Bearer key-1"}).json()
    gunicorn.get("/health")

    wait_until(lambda: "POST /query" in collector.names())
    spans = [span for span in collector.spans if span.trace == TRACE]
    by_id = {span.id: span.name for span in spans}
    tree = {(by_id.get(span.parent, span.parent), span.name, span.kind) for span in spans}
    assert tree == {
        (CALLER, "POST /query", "SERVER"),
        ("POST /query", "cache.exact", "INTERNAL"),
        ("POST /query", "embeddings nomic-embed-text", "CLIENT"),
        ("embeddings nomic-embed-text", "bulkhead.wait", "INTERNAL"),
        ("POST /query", "cache.search", "INTERNAL"),
        ("POST /query", "guards", "INTERNAL"),
        ("POST /query", "retrieval", "INTERNAL"),
        ("POST /query", "bulkhead.wait", "INTERNAL"),
        ("POST /query", "chat llama3.2", "CLIENT"),
        ("POST /query", "cache.store", "INTERNAL"),
    }
    request, chat = collector.one("POST /query"), collector.one("chat llama3.2")
    assert ollama.stats["traceparents"]["/api/chat"] == f"00-{TRACE}-{chat.id}-01"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/query",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "ragherd.request.id": "r1",
        "ragherd.tenant.hash": owner_of("acme"),
        "ragherd.cache.status": "miss",
    }
    assert chat.attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3.2",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "llama3.2",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
        "server.address": "127.0.0.1",
        "server.port": int(ollama.base_url.rpartition(":")[2]),
    }
    assert request.resource["service.name"] == "ragherd"
    assert request.resource["deployment.environment.name"] == "test"
    assert collector.headers["x-key"] == "secret-key"
    assert not [text for text in (b"acme", b"key-1", b"France") if text in b"".join(collector.bodies)]
    [line] = requests(gunicorn)
    assert (line["trace_id"], line["request_id"]) == (TRACE, "r1")
    assert "secret-key" not in "\n".join(gunicorn.lines())


def test_a_streamed_semantic_hit_shows_search_and_guards(start: Any, collector: OtlpCollector) -> None:
    gunicorn = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON, **EMBEDDER)
    ask(gunicorn)
    paraphrase = {"question": "What is the capital of France, please?", "stream": True}
    response = gunicorn.client.post(f"{gunicorn.url()}/query", json=paraphrase, headers=HEADERS)

    assert '"kind":"semantic"' in response.text
    wait_until(lambda: collector.names().count("POST /query") == 2)
    spans = [span for span in collector.spans if span.trace == TRACE]
    assert sorted(span.name for span in spans) == [
        "POST /query",
        "bulkhead.wait",
        "cache.exact",
        "cache.search",
        "embeddings nomic-embed-text",
        "guards",
    ]
    [request] = [span for span in spans if span.parent == CALLER]
    assert (request.attributes["ragherd.cache.status"], request.attributes["ragherd.cache.kind"]) == ("hit", "semantic")
    assert 0.9 < request.attributes["ragherd.cache.similarity"] < 1


def test_hits_are_sampled_and_errors_kept(start: Any, collector: OtlpCollector, ollama: StubProcess) -> None:
    gunicorn = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, TRACE_HIT_SAMPLE_RATE="0", METRICS_PORT=free_port(), **SOON
    )
    statuses = [ask(gunicorn).json()["cache"]["status"] for _ in range(3)]
    ollama.behaviour("status", status=400)
    gunicorn.client.post(f"{gunicorn.url()}/query", json={"question": "And of Spain?"})

    wait_until(lambda: collector.names().count("POST /query") == 2)
    assert statuses == ["miss", "hit", "hit"]
    miss, failed = [span for span in collector.spans if span.name == "POST /query"]
    assert miss.attributes["ragherd.cache.status"] == "miss"
    assert (failed.attributes["error.type"], failed.failed) == ("upstream-failed", True)
    assert {span.trace for span in collector.spans} == {miss.trace, failed.trace}
    [chat] = [span for span in collector.spans if span.name.startswith("chat") and span.failed]
    assert chat.attributes["error.type"] == "request_rejected"
    assert chat.attributes["gen_ai.system"] == "ollama"
    wait_until(lambda: gunicorn.metric('ragherd_trace_spans_total{outcome="exported"}') == len(collector.spans))


def test_texts_need_three_settings(start: Any, collector: OtlpCollector) -> None:
    gunicorn = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY",
        LOG_QUESTIONS="true",
        **SOON,
        **LATEST,
    )
    answer = ask(gunicorn).json()["answer"]

    wait_until(lambda: "POST /query" in collector.names())
    [chat] = [span for span in collector.spans if span.name.startswith("chat")]
    asked = json.loads(chat.attributes["gen_ai.input.messages"])
    said = json.loads(chat.attributes["gen_ai.output.messages"])
    assert QUESTION["question"] in asked[-1]["parts"][0]["content"]
    assert said == [{"role": "assistant", "parts": [{"type": "text", "content": answer}], "finish_reason": "stop"}]


def test_sigterm_exports_what_every_worker_has_queued(start: Any, collector: OtlpCollector) -> None:
    gunicorn = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="3600000", WORKERS="2", GRACEFUL_TIMEOUT="5"
    )
    seen: set[str] = set()

    def both_answered() -> bool:
        seen.add(ask(gunicorn).headers["x-worker"])
        return len(seen) == 2

    wait_until(both_answered)
    assert collector.spans == []
    gunicorn.process.terminate()
    gunicorn.process.wait(20)

    assert {span.resource["service.instance.id"] for span in collector.spans} == seen


@pytest.mark.parametrize("fault", ["refuses", "hangs", "fails"])
def test_a_dead_collector_costs_one_log_line(start: Any, collector: OtlpCollector, fault: str) -> None:
    if fault == "hangs":
        collector.answers.clear()
    collector.status = 500
    url = f"http://127.0.0.1:{free_port()}" if fault == "refuses" else collector.url
    gunicorn = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_BSP_MAX_QUEUE_SIZE="8",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
        METRICS_PORT=free_port(),
        **SOON,
    )
    queued = 'ragherd_trace_spans_total{outcome="queued"}'
    failed = 'ragherd_trace_spans_total{outcome="failed"}'

    def failed_twice() -> bool:
        assert ask(gunicorn).elapsed.total_seconds() < 1, "a request waited for the collector"
        return bool(gunicorn.metric(failed) >= 8)

    wait_until(failed_twice, timeout=20)
    assert gunicorn.metric(queued) > gunicorn.metric(failed)
    gunicorn.process.terminate()
    gunicorn.process.wait(10)
    events = [json.loads(line)["event"] for line in gunicorn.lines()]
    assert events.count("collector_lost") == 1
    assert not [event for event in events if "span" in event.lower() and event != "spans_not_flushed"]
    assert not [event for event in events if "error" in event.lower() or "retry" in event.lower()]


def test_without_the_extra_the_service_runs_and_says_so(start: Any, collector: OtlpCollector, tmp_path: Path) -> None:
    missing = tmp_path / "sitecustomize.py"
    missing.write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    gunicorn = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, PYTHONPATH=f"{tmp_path}:{ROOT}")

    assert ask(gunicorn).status_code == 200
    [line] = [line for line in map(json.loads, gunicorn.lines()) if line["event"] == "tracing_not_installed"]
    assert "ragherd[otel]" in line["message"]
    assert collector.bodies == []


def test_a_wrong_variable_of_opentelemetry_stops_the_start(start: Any, collector: OtlpCollector) -> None:
    gunicorn = start(
        ready=False,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_MAX_QUEUE_SIZE="4",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="5",
    )
    gunicorn.process.wait(30)
    wrong = [line for line in map(json.loads, gunicorn.lines()) if line["event"] == "settings_wrong"]
    assert "max_export_batch_size" in wrong[0]["message"]
