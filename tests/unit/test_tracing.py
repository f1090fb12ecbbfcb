"""Spans of requests: what they contain, and which are kept."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, Tracer
from prometheus_client import CollectorRegistry

from api.errors import UpstreamError, UpstreamFault
from api.observability import tracing
from api.observability.metrics import Metrics
from api.observability.traced_steps import TracedEmbedder, TracedTelemetry, Vocabulary, span_of
from api.observability.tracing import (
    MOST_BUFFERED,
    HitSampler,
    ReportedExporter,
    RequestTracing,
    _LastError,
    open_tracing,
)
from api.ports.answer_quality import PolicyDecision, PolicyName, PolicyOutcome
from api.ports.inference import CurrentIdentity
from api.ports.question import AnswerFinished, Timings
from api.settings import TracingSettings
from api.values import CacheStatus
from tests.support.gunicorn_process import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECRET = "How much does Ms. Smith owe?"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


class Exported:
    """A provider whose spans stay in memory."""

    def __init__(self, hits: float = 1.0, sampler: Sampler | None = None) -> None:
        self._memory = InMemorySpanExporter()
        self.registry = CollectorRegistry()
        provider = TracerProvider(sampler=sampler) if sampler is not None else TracerProvider()
        following = SimpleSpanProcessor(self._memory)
        provider.add_span_processor(HitSampler(following, hits, Metrics(self.registry)))
        self.tracer: Tracer = provider.get_tracer("test")
        self.tracing = RequestTracing(self.tracer, latest=True, captures=False)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._memory.get_finished_spans()

    def names(self) -> list[str]:
        return [span.name for span in self.spans]


async def serve(
    exported: Exported,
    state: Mapping[str, Any],
    *,
    status: int | None = 200,
    path: str = "/query",
    headers: Mapping[str, str] | None = None,
    error: Exception | None = None,
    complete: bool = True,
) -> None:
    """Serves a request whose endpoint leaves `state`, makes a step, and answers with `status`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with exported.tracing.step("a step"):
            scope["state"].update(state)
        if status is not None:
            await send({"type": "http.response.start", "status": status})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if error is not None:
            raise error
        if status is not None and complete:
            await send({"type": "http.response.body", "body": b""})

    async def send(_: Any) -> None:
        """Sends nothing."""

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"path": path, "method": "POST", "headers": raw, "state": {}, "query_string": SECRET.encode()}
    await exported.tracing.serve(app, scope, None, send, lambda _: "/query")


def answered(status: CacheStatus) -> dict[str, Any]:
    return {"answered": AnswerFinished("an answer", "llama3.2", status, Timings())}


async def test_only_hits_are_left_out() -> None:
    exported = Exported(hits=0.0)

    await serve(exported, answered(CacheStatus.HIT))
    assert exported.names() == []

    for status in (CacheStatus.MISS, CacheStatus.STALE, CacheStatus.COALESCED, CacheStatus.BYPASS):
        await serve(exported, answered(status))
    await serve(exported, {})
    assert exported.names() == ["a step", "POST /query"] * 5
    assert exported.registry.get_sample_value("ragherd_trace_spans_total", {"outcome": "queued"}) == 10


async def test_a_hit_that_failed_is_kept() -> None:
    exported = Exported(hits=0.0)

    await serve(exported, {**answered(CacheStatus.HIT), "error": "internal-error"})

    assert exported.names() == ["a step", "POST /query"]


async def test_requests_of_one_trace_are_judged_apart() -> None:
    exported = Exported(hits=0.0)
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

    await serve(exported, answered(CacheStatus.HIT), headers=headers)
    await serve(exported, answered(CacheStatus.MISS), headers=headers)

    assert exported.names() == ["a step", "POST /query"]
    assert {f"{span.context.trace_id:032x}" for span in exported.spans if span.context} == {"a" * 32}
    parent = exported.spans[-1].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == "b" * 16


async def test_a_request_with_many_steps_uses_bounded_memory() -> None:
    exported = Exported()
    with exported.tracer.start_as_current_span("request", kind=SpanKind.SERVER):
        for _ in range(MOST_BUFFERED + 3):
            with exported.tracing.step("a step"):
                assert len(exported.names()) <= 3
        assert exported.names() == ["a step"] * 3
    assert len(exported.names()) == MOST_BUFFERED + 4


async def test_a_span_has_no_query_string_path_or_tenant() -> None:
    exported = Exported()

    await serve(exported, {"tenant": "acme", "request_id": "r1"}, path=f"/documents/{SECRET}")

    everything = "".join(span.to_json() for span in exported.spans)
    assert not [text for text in ("acme", "Smith") if text in everything]


@pytest.mark.parametrize(
    ("status", "state", "error", "failed"),
    [
        (200, {}, None, False),
        (404, {"error": "unknown-model"}, "unknown-model", False),
        (503, {"error": "breaker-open"}, "breaker-open", True),
        (200, {"error": "upstream-failed"}, "upstream-failed", True),  # in mid-stream
        (500, {}, "500", True),
        (None, {}, "client_disconnected", False),
        (499, {}, "client_disconnected", False),
    ],
)
async def test_errors_are_named(status: int | None, state: Mapping[str, Any], error: str | None, failed: bool) -> None:
    exported = Exported()

    await serve(exported, state, status=status)

    request = exported.spans[-1]
    assert (request.attributes or {}).get("error.type") == error
    assert (not request.status.is_ok) == failed


async def test_a_client_that_left_in_mid_stream_is_named_and_is_not_a_fault() -> None:
    exported = Exported(hits=0.0)

    await serve(exported, answered(CacheStatus.HIT), complete=False)
    await serve(exported, {"error": "upstream-failed"}, complete=False)

    left, failed = exported.spans[1], exported.spans[3]
    assert (left.attributes or {})["error.type"] == "client_disconnected"
    assert left.status.is_ok
    assert (failed.attributes or {})["error.type"] == "upstream-failed"


class _Refusing(SpanExporter):
    """Raises, as the encoder does for a name that is not valid Unicode."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")


def test_spans_that_the_exporter_cannot_encode_count_as_failed() -> None:
    registry = CollectorRegistry()
    exporter = ReportedExporter(_Refusing(), Metrics(registry), _LastError())

    assert exporter.export([Mock(), Mock()]) is SpanExportResult.FAILURE

    assert registry.get_sample_value("ragherd_trace_spans_total", {"outcome": "failed"}) == 2


async def test_an_exception_ends_the_span_and_passes() -> None:
    exported = Exported()

    with pytest.raises(RuntimeError, match="broken"):
        await serve(exported, {}, status=500, error=RuntimeError("broken"))

    assert (exported.spans[-1].attributes or {})["error.type"] == "RuntimeError"


async def test_the_sampler_decides_first() -> None:
    exported = Exported(sampler=ALWAYS_OFF)

    await serve(exported, answered(CacheStatus.MISS))

    assert exported.names() == []


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/metrics"])
async def test_probes_are_not_traced(path: str) -> None:
    exported = Exported()

    await serve(exported, {}, path=path)

    assert exported.names() == ["a step"]


def test_an_error_has_no_message() -> None:
    exported = Exported()

    with pytest.raises(UpstreamError), span_of(exported.tracer, "a step"):
        raise UpstreamError(UpstreamFault.SERVER_ERROR, SECRET)

    [span] = exported.spans
    assert (span.attributes or {})["error.type"] == "server_error"
    assert "Smith" not in span.to_json()


async def test_an_embedding_in_the_worker_is_no_call_of_ollama() -> None:
    class Embedder:
        current = CurrentIdentity()

        async def identity(self) -> Any: ...

        async def embed(self, texts: Any, *, tenant: str) -> list[Any]:
            return [texts]

    exported = Exported()
    traced = TracedEmbedder(Embedder(), exported.tracer, Vocabulary(True, False), "all-MiniLM-L6-v2", here=True)

    await traced.embed([SECRET], tenant="acme")

    [span] = exported.spans
    assert (span.name, span.kind) == ("embeddings all-MiniLM-L6-v2", SpanKind.INTERNAL)
    assert (span.attributes or {})["gen_ai.provider.name"] == "onnx"
    assert "Smith" not in span.to_json()


def test_what_the_flow_reports_is_added_without_texts() -> None:
    exported = Exported()
    telemetry = TracedTelemetry(Metrics(CollectorRegistry()), Mock(), log_questions=True)
    decision = PolicyDecision(PolicyName.VERIFIED, PolicyOutcome.SERVED)
    with exported.tracer.start_as_current_span("request"):
        telemetry.guard_rejected("numbers", SECRET, 0.9876543)
        telemetry.failed_over("ollama", UpstreamError(UpstreamFault.BUSY, SECRET))
        telemetry.policy_decided(decision)
        telemetry.grounded("grounded", 4)

    [span] = exported.spans
    assert {event.name: dict(event.attributes or {}) for event in span.events} == {
        "guard_rejected": {"ragherd.guard": "numbers", "ragherd.cache.similarity": 0.9877},
        "failed_over": {"ragherd.backend": "ollama", "error.type": "busy"},
    }
    assert dict(span.attributes or {}) == {
        "ragherd.cache.policy": "verified",
        "ragherd.cache.decision": "served",
        "ragherd.retrieval.outcome": "grounded",
        "ragherd.retrieval.passages": 4,
    }
    assert "Smith" not in span.to_json()


@pytest.mark.parametrize(
    ("values", "is_on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_tracing_is_on_if_traces_have_somewhere_to_go(
    monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str], is_on: bool
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert TracingSettings(_env_file=None).is_on is is_on


def test_values_of_the_env_file_reach_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {"OTEL_SERVICE_NAME": "of the environment"}
    monkeypatch.setattr("os.environ", given)
    file = tmp_path / ".env"
    file.write_text("OTEL_SERVICE_NAME=of the file\nOTEL_TRACES_SAMPLER=always_off\nTRACE_HIT_SAMPLE_RATE=0.5\n")

    TracingSettings(_env_file=file).export()

    assert given == {"OTEL_SERVICE_NAME": "of the environment", "OTEL_TRACES_SAMPLER": "always_off"}


@pytest.mark.parametrize(
    ("opt_in", "capture", "captures"),
    [
        ("gen_ai_latest_experimental", "SPAN_ONLY", True),
        ("http,gen_ai_latest_experimental", "span_and_event", True),
        ("gen_ai_latest_experimental", "EVENT_ONLY", False),
        ("gen_ai_latest_experimental", "", False),
        ("", "SPAN_ONLY", False),
    ],
)
def test_texts_need_both_settings_of_opentelemetry(opt_in: str, capture: str, captures: bool) -> None:
    settings = TracingSettings(
        _env_file=None,
        otel_semconv_stability_opt_in=opt_in,
        otel_instrumentation_genai_capture_message_content=capture,
    )
    assert settings.captures_content is captures


@pytest.mark.slow
def test_packages_for_collectors_tools_and_documents_are_not_imported_before_use() -> None:
    program = (
        "import sys, worker_config.gunicorn_conf\nfrom api.app import create_app\nfrom api.settings import Settings\n"
        "create_app(Settings())\n"
        "without = ('opentelemetry.exporter', 'mcp', 'sse_starlette', 'semantic_text_splitter', 'charset',\n"
        "           'opentelemetry.sdk', 'colorama', 'greenlet', 'pygments', 'redisvl', 'rich', 'yaml')\n"
        "print([name for name in sys.modules if name.startswith(without)])\n"
        "print(sorted(name for name in sys.modules if name.endswith(('.tracing', '.traced_steps'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['api.ports.tracing', 'api.settings.tracing']"]


async def test_spans_for_a_dead_collector_leave_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.1)
    before = set(threading.enumerate())
    metrics = Metrics(CollectorRegistry())
    async with open_tracing("w-1", metrics, console=False, hit_share=1, latest=True, captures=False) as made:
        with made.step("chat"):
            pass
    wait_until(lambda: set(threading.enumerate()) <= before, timeout=5)
    assert logging.getLogger("opentelemetry").propagate
