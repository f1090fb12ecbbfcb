"""Traces of one worker by OpenTelemetry: provider, exporter, sampling of hits, and the span of a request.

Imported only if a collector is set. The provider is made in the worker, after the fork, and is not global. Spans wait
in a bounded queue (OTEL_BSP_MAX_QUEUE_SIZE) for a thread that exports them, so a slow or dead collector delays no
request. If the queue is full, its oldest spans are dropped.

Spans have no texts of questions, answers or documents, and no names of tenants. The path and the query string of a
request may contain both, so its span has the route's template.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, Final

import structlog
from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from api import __version__
from api.errors import CLIENT_CLOSED_REQUEST
from api.observability.metrics import Metrics
from api.observability.traced_steps import (
    TracedAnswerCache,
    TracedBulkhead,
    TracedEmbedder,
    TracedLanguageModel,
    TracedVerifier,
    Vocabulary,
    span_of,
)
from api.ports.answer_cache import AnswerCache
from api.ports.answer_quality import Verifier
from api.ports.coordination import Bulkhead
from api.ports.inference import Embedder, LanguageModel
from api.ports.question import AnswerFinished
from api.ports.tracing import Application, Tracing
from api.values import owner_of

FLUSH_SECONDS: Final = 2.0
"""Seconds that the last spans have to reach the collector when the worker stops."""
ABORT_SECONDS: Final = 0.5
"""Seconds after these until the worker stops without them."""
MOST_BUFFERED: Final = 64
"""Spans of one request that wait for its end. Later ones are exported at once."""
UNTRACED: Final = ("/health", "/metrics")
"""Paths that probes and scrapers call every few seconds."""
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
CACHE_STATUS: Final = "ragherd.cache.status"
LEFT: Final = "client_disconnected"
"""The `error.type` of a request whose client left before the end of the response."""


class _ScopeHeaders(Getter[Iterable[tuple[bytes, bytes]]]):
    """Reads the headers of an ASGI scope."""

    def get(self, carrier: Iterable[tuple[bytes, bytes]], key: str) -> list[str] | None:
        """Returns the values of a header. Several are one list, as HTTP says."""
        name = key.lower().encode("latin-1")
        values = [value.decode("latin-1") for header, value in carrier if header == name]
        return [",".join(values)] if values else None

    def keys(self, carrier: Iterable[tuple[bytes, bytes]]) -> list[str]:
        """Returns the names."""
        return [name.decode("latin-1") for name, _ in carrier]


_HEADERS: Final = _ScopeHeaders()


class _Buffered:
    """The ended spans of a request that has not ended, and what becomes of them."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.spans: list[ReadableSpan] = []
        self.dropped: bool | None = None
        """None while the request runs."""


class HitSampler(SpanProcessor):
    """Passes on the spans of all requests but those answered from the cache, of which it keeps a share.

    Whether a request is a hit is known at its end, so its spans wait for it.
    """

    def __init__(self, following: SpanProcessor, share: float, metrics: Metrics) -> None:
        self._following = following
        self._share = share
        self._metrics = metrics
        self._open: dict[int, _Buffered] = {}
        """By the id of each open span, the request that it belongs to."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remembers which request a span belongs to."""
        context, parent = span.get_span_context(), span.parent
        if context is None:
            return
        if span.kind is SpanKind.SERVER:
            self._open[context.span_id] = _Buffered(context.span_id)
        elif parent is not None and (buffered := self._open.get(parent.span_id)) is not None:
            self._open[context.span_id] = buffered

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps a span until its request has ended, then passes on all of them or none."""
        context = span.get_span_context()
        buffered = self._open.pop(context.span_id, None) if context is not None else None
        if context is None or buffered is None or buffered.dropped is False:
            self._pass_on(span)
        elif context.span_id == buffered.root:
            buffered.dropped = self._is_left_out(span)
            self._pass_on(*([] if buffered.dropped else [*buffered.spans, span]))
            buffered.spans.clear()
        elif buffered.dropped is None and len(buffered.spans) < MOST_BUFFERED:
            buffered.spans.append(span)
        elif buffered.dropped is None:
            self._pass_on(span)

    def _pass_on(self, *spans: ReadableSpan) -> None:
        for span in spans:
            self._following.on_end(span)
        if spans:
            self._metrics.spans("queued", len(spans))

    def _is_left_out(self, request: ReadableSpan) -> bool:
        attributes = request.attributes or {}
        if attributes.get(CACHE_STATUS) != "hit" or "error.type" in attributes:
            return False
        return random.random() >= self._share  # noqa: S311 - a sample, no secret

    def shutdown(self) -> None:
        """Exports what is queued."""
        self._following.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Exports what is queued."""
        return self._following.force_flush(timeout_millis)


class _LastError(logging.Handler):
    """Keeps the exporter's last error instead of a line for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by the SDK's loggers."""
        if record.name.startswith("opentelemetry.exporter"):
            self.text = record.getMessage()[:300]


class ReportedExporter(SpanExporter):
    """Counts exported and failed spans. Logs one line when the collector is lost, and one when it is back.

    It runs in the exporter's thread.
    """

    def __init__(self, exporter: SpanExporter, metrics: Metrics, last_error: _LastError) -> None:
        self._exporter = exporter
        self._metrics = metrics
        self._last_error = last_error
        self._failing = False
        self._log = structlog.get_logger("ragherd.tracing")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports a batch; retries within OTEL_EXPORTER_OTLP_TIMEOUT."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - such as a name that protobuf refuses; the SDK would only log it
            self._last_error.text = f"{type(error).__name__}: {error}"[:300]
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        self._metrics.spans("failed" if failed else "exported", len(spans))
        if failed and not self._failing:
            self._log.warning("collector_lost", error=self._last_error.text)
        elif self._failing and not failed:
            self._log.info("collector_found")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Ends a retry."""
        self._exporter.shutdown()


class RequestTracing(Tracing):
    """Makes spans. `captures`: they may have the texts of prompts and answers."""

    def __init__(self, tracer: Tracer, *, latest: bool, captures: bool) -> None:
        self._tracer = tracer
        self._vocabulary = Vocabulary(latest, captures)
        self.on_send = add_context

    def step(self, name: str) -> AbstractContextManager[object]:
        """A step without attributes."""
        return span_of(self._tracer, name, self._vocabulary.step(name))

    def answer_cache(self, cache: AnswerCache) -> AnswerCache:
        """Spans `cache.exact`, `cache.search`, `cache.store`."""
        return TracedAnswerCache(cache, self._tracer)

    def embedder(self, embedder: Embedder, model: str, *, here: bool) -> Embedder:
        """Spans `embeddings MODEL`."""
        return TracedEmbedder(embedder, self._tracer, self._vocabulary, model, here=here)

    def verifier(self, verifier: Verifier) -> Verifier:
        """Spans `verifier`."""
        return TracedVerifier(verifier, self._tracer)

    def bulkhead(self, bulkhead: Bulkhead) -> Bulkhead:
        """Spans `bulkhead.wait`."""
        return TracedBulkhead(bulkhead, self._tracer)

    def language_model(self, model: LanguageModel, url: str) -> LanguageModel:
        """Spans `chat MODEL`."""
        return TracedLanguageModel(model, self._tracer, self._vocabulary, url)

    async def serve(
        self,
        app: Application,
        scope: MutableMapping[str, Any],
        receive: Any,
        send: Any,
        route_of: Callable[[MutableMapping[str, Any]], str],
    ) -> None:
        """Spans `METHOD ROUTE`, with the caller's trace context. Every log line gets the trace's id."""
        if scope["path"].startswith(UNTRACED):
            await app(scope, receive, send)
            return
        parent = propagate.extract(scope["headers"], getter=_HEADERS)
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        facts = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
        span = self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER, attributes=facts)
        started, complete = 0, False

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            nonlocal started, complete
            if message["type"] == "http.response.start":
                started = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        token = contexts.attach(trace.set_span_in_context(span, parent))
        trace_id = scope["state"]["trace_id"] = trace.format_trace_id(span.get_span_context().trace_id)
        error = ""
        try:
            with structlog.contextvars.bound_contextvars(trace_id=trace_id):
                await app(scope, receive, send_and_note)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            contexts.detach(token)
            state = scope.get("state", {})
            left = not complete or started == CLIENT_CLOSED_REQUEST
            failure = error or state.get("error", "") or (LEFT if left else "")
            self._end(span, method, route_of(scope), started, failure, state)

    def _end(
        self, span: trace.Span, method: str, route: str, status: int, failure: str, state: MutableMapping[str, Any]
    ) -> None:
        """Ends a request's span with what its endpoint left in its state."""
        answered: AnswerFinished | None = state.get("answered")
        facts: dict[str, Any] = {"http.route": route, "ragherd.request.id": state.get("request_id", "")}
        if route != "unmatched":
            span.update_name(f"{method} {route}")
        if (tenant := state.get("tenant")) is not None:
            facts["ragherd.tenant.hash"] = owner_of(tenant)
        if answered is not None:
            facts[CACHE_STATUS] = answered.status.value
            if (match := answered.match) is not None:
                facts |= {"ragherd.cache.kind": match.kind, "ragherd.cache.similarity": match.similarity}
        if status:
            facts["http.response.status_code"] = status
        if status >= 500 or failure:
            facts["error.type"] = failure or str(status)
            if status >= 500 or (status == 200 and failure != LEFT):
                span.set_status(StatusCode.ERROR)
        span.set_attributes(facts)
        span.end()


def add_context(headers: MutableMapping[str, str]) -> None:
    """Adds `traceparent`, `tracestate` and `baggage` to the headers of an HTTP request."""
    propagate.inject(headers)


@asynccontextmanager
async def open_tracing(
    worker: str, metrics: Metrics, *, console: bool, hit_share: float, latest: bool, captures: bool
) -> AsyncIterator[Tracing]:
    """Makes this worker's provider. The SDK reads its settings from the environment, and raises `ValueError`.

    On exit the queued spans have `FLUSH_SECONDS` to reach the collector. Then the exporter is told to give up.
    """
    last_error, logger = _LastError(), logging.getLogger("opentelemetry")
    exporter: SpanExporter = ConsoleSpanExporter() if console else OTLPSpanExporter()
    resource = Resource.create({"service.version": __version__, "service.instance.id": worker})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "ragherd"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    batches = BatchSpanProcessor(ReportedExporter(exporter, metrics, last_error))
    provider.add_span_processor(HitSampler(batches, hit_share, metrics))
    metrics.tracing_known()
    logger.addHandler(last_error)
    logger.propagate = False
    try:
        yield RequestTracing(provider.get_tracer("ragherd", __version__), latest=latest, captures=captures)
    finally:
        if await _shut_down(provider, exporter):
            logger.removeHandler(last_error)
            logger.propagate = True


async def _shut_down(provider: TracerProvider, exporter: SpanExporter) -> bool:
    """Exports the last spans in a daemon thread: if the collector is dead, the process does not wait for it.

    After `FLUSH_SECONDS` the exporter retries no more, and the thread has `ABORT_SECONDS` to end. A request without a
    reply cannot be aborted. Returns whether the thread has ended.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the worker has not waited, and its loop is closed
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
    if await _is_set(done, FLUSH_SECONDS):
        return True
    structlog.get_logger("ragherd.tracing").warning("spans_not_flushed", seconds=FLUSH_SECONDS)
    exporter.shutdown()
    return await _is_set(done, ABORT_SECONDS)


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False
