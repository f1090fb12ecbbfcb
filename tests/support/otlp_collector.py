"""A collector of traces for tests: receives OTLP over HTTP, and decodes the spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True)
class ExportedSpan:
    """A span. Ids are hexadecimal; `parent` is empty for the first span of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    resource: dict[str, Any]
    failed: bool


class OtlpCollector:
    """Made by `otlp_collector`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[ExportedSpan] = []
        self.bodies: list[bytes] = []
        self.headers: dict[str, str] = {}
        """Of the last export."""
        self.status = 200
        self.answers = threading.Event()
        """Cleared, no export gets an answer."""
        self.answers.set()

    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)

    def one(self, name: str) -> ExportedSpan:
        """Returns the only span of this name."""
        [span] = [span for span in self.spans if span.name == name]
        return span

    def receive(self, headers: dict[str, str], body: bytes) -> None:
        raw = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.headers = headers
        self.bodies.append(raw)
        if self.status == 200:
            for of_resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self.spans += [_read(span, resource) for span in of_scope.spans]


def _read(span: Span, resource: dict[str, Any]) -> ExportedSpan:
    return ExportedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        _attributes(span.attributes),
        tuple(event.name for event in span.events),
        resource,
        span.status.code == 2,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind is not None else None


@contextmanager
def otlp_collector() -> Iterator[OtlpCollector]:
    """Runs a collector in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.answers.wait()
            collector.receive({name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Writes nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = OtlpCollector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        server.shutdown()
        server.server_close()
