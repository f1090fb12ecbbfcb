"""Completes the OpenAPI description (error responses, keys, examples), and serves Swagger UI at GET /docs.

All assets of the page come from the package, so it works offline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from mimetypes import guess_type
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from api.endpoints.access import Role
from api.endpoints.problems import PROBLEM_JSON
from api.endpoints.routes import CheckedRoute, needs, role_of
from api.errors import InvalidRequest, NotFound, RagherdError

_ID: Final = "3a755ca3e1488546dc0eacd7"
_DOCUMENT: Final[dict[str, Any]] = {
    "id": _ID,
    "status": "ready",
    "title": "Holiday policy",
    "tenant": "default",
    "tags": ["hr"],
    "source": "https://example.com/holiday",
    "version": None,
    "language": "en",
    "chunks": 1,
    "characters": 37,
    "revision": 1795647910363,
    "digest": "76bd13b32bfb3b0089a34e75bb3868689de74acc182c5c31ada448f0a8600eb0",
    "created": "2026-11-25T23:05:10.363Z",
    "updated": "2026-11-25T23:05:10.374Z",
    "error": None,
    "delayed_by": None,
    "not_embedded": 0,
    "warnings": [],
    "failed_chunks": [],
    "progress": None,
}
_PASSAGE: Final = {
    "chunk": 0,
    "page": None,
    "heading": "",
    "text": "Holiday is approved by the team lead.",
    "start": 0,
    "end": 37,
}
_BREAKER: Final[dict[str, Any]] = {
    "state": "OPEN",
    "failure_count": 5,
    "success_count": 1,
    "total_calls": 6,
    "last_failure_time": "2026-11-23T13:47:43.212Z",
    "rejected_calls": 3,
    "slow_calls": 0,
    "ignored_calls": 0,
    "stale_results": 0,
    "lost_probes": 0,
    "consecutive_failures": 0,
    "failure_rate": 0.0,
    "slow_call_rate": 0.0,
    "window_calls": 0,
    "opened_at": "2026-11-23T13:47:43.212Z",
    "retry_after_seconds": 20,
    "probes_in_flight": 0,
    "epoch": 1795441663212,
    "reason": "consecutive_failures",
    "forced": None,
    "enabled": True,
    "store": "shared",
}
_BULKHEAD: Final[dict[str, Any]] = {
    "limit": 4,
    "reserved": 0,
    "in_use": 4,
    "waiting": 3,
    "waiting_by_priority": {"user": 1, "batch": 2, "background": 0},
    "waiting_tenants": 2,
    "waiting_by_tenant": {"acme": 2, "default": 1},
    "max_queue": 64,
    "max_wait_seconds": 30.0,
    "batch_after_seconds": 10.0,
    "service_seconds": 2.871,
    "served": 118,
    "rejected": {"queue_full": 0, "deadline": 1, "displaced": 0},
    "rejected_by_priority": {"user": 0, "batch": 1, "background": 0},
    "lost_permits": 0,
    "store": "shared",
}
_POOL: Final[dict[str, Any]] = {
    "active": 0,
    "idle": 5,
    "waiting": 0,
    "requests": 4,
    "connections_opened": 6,
    "connections_reused": 3,
    "reuse_rate": 0.75,
    "pool_timeouts": 0,
}
_WORKER: Final[dict[str, Any]] = {
    "id": "vm-16499-f46f",
    "host": "vm",
    "pid": 16499,
    "version": "0.1.0",
    "schema": "1.0",
    "started": "2026-11-23T13:45:51Z",
    "requests": 11,
    "pool": _POOL,
}
_TRANSITION: Final[dict[str, Any]] = {
    "id": "1795441663212-0",
    "time": "2026-11-23T13:47:43.212Z",
    "from": "CLOSED",
    "to": "OPEN",
    "reason": "consecutive_failures",
    "by": "vm-17360-b87e",
    "epoch": 1795441663212,
    "wait_ms": 20000,
    "total": 6,
    "failed": 5,
    "slow": 0,
    "consecutive": 5,
    "probes": 0,
}
_WARM_UP: Final[dict[str, Any]] = {
    "id": "4f0c8f1d6a2b9e37",
    "status": "running",
    "total": 2,
    "done": 1,
    "generated": 1,
    "stored": 1,
    "skipped": 0,
    "failed": 0,
    "errors": [],
    "started": "2026-11-24T11:50:02.117Z",
    "ended": None,
    "by": "vm-16499-f46f",
}
_AUDIT_ENTRY: Final[dict[str, Any]] = {
    "id": "1795441663212-0",
    "number": 1,
    "time": "2026-11-23T13:47:43.212Z",
    "at_ms": 1795441663212,
    "action": "cache.warm-up",
    "by": "key-5e884898",
    "role": "admin",
    "request_id": "ffb017c5ce714d94b949a8e8ebdc84c6",
    "worker": "vm-17360-b87e",
    "details": {"questions": "1"},
    "previous": "0000000000000000000000000000000000000000000000000000000000000000",
    "hash": "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca7",
}
_ACCESS_KEY: Final[dict[str, Any]] = {
    "id": "5f2c61a09be374d8",
    "prefix": "rgh_5f2c61a09be374d8",
    "tenant": "acme",
    "role": "user",
    "name": "web shop",
    "models": [],
    "requests_per_minute": 60,
    "tokens_per_minute": None,
    "tokens_per_day": 100_000,
    "tokens_per_month": None,
    "concurrent_streams": 4,
    "created_at": "2026-11-29T12:00:03.512Z",
    "expires_at": None,
    "rotated_at": None,
    "last_used_at": None,
    "former_valid_until": None,
}
_CREATED_KEY: Final = {**_ACCESS_KEY, "secret": "rgh_5f2c61a09be374d8_..."}
_BREAKERS: Final = {**_BREAKER, "breakers": {"ollama": _BREAKER}}

EXAMPLES: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("post", "/documents"): {**_DOCUMENT, "outcome": "created"},
    ("get", "/documents"): {"documents": [_DOCUMENT], "cursor": f"1795647910363-{_ID}"},
    ("get", "/documents/{document}"): {**_DOCUMENT, "passages": [_PASSAGE]},
    ("get", "/api/circuit-breaker/metrics"): _BREAKERS,
    ("get", "/api/circuit-breaker/history"): {"breaker": "ollama", "transitions": [_TRANSITION]},
    ("post", "/api/circuit-breaker/force-open"): {**_BREAKERS, "reason": "forced_open", "forced": "OPEN"},
    ("get", "/api/bulkhead/metrics"): {**_BULKHEAD, "bulkheads": {"ollama": _BULKHEAD}},
    ("delete", "/api/semantic-cache"): {"matched": 2, "deleted": 2, "dry_run": False},
    ("post", "/api/semantic-cache/warm"): _WARM_UP,
    ("get", "/api/semantic-cache/warm/{job}"): _WARM_UP,
    ("get", "/api/audit"): {"entries": [_AUDIT_ENTRY]},
    ("post", "/api/keys"): _CREATED_KEY,
    ("get", "/api/keys"): {"keys": [_ACCESS_KEY]},
    ("post", "/api/keys/{key_id}/rotate"): {**_CREATED_KEY, "rotated_at": "2026-11-29T12:07:41.020Z"},
    ("delete", "/api/keys/{key_id}"): _ACCESS_KEY,
    ("get", "/api/workers"): {"workers": [_WORKER]},
    ("get", "/api/semantic-cache/metrics"): {
        "enabled": True,
        "hits": 7,
        "misses": 6,
        "hit_rate": 0.538462,
        "cache_size": 2,
        "max_cache_size": 1000,
        "exact_hits": 2,
        "semantic_hits": 5,
        "stale_hits": 0,
        "coalesced": 0,
        "stores": 3,
        "evictions": 0,
        "guard_rejections": 0,
        "corrupt": 0,
        "invalidations": 0,
        "quarantined": 0,
        "released": 0,
        "feedback_good": 0,
        "feedback_bad": 0,
        "similarity_threshold": 0.92,
        "ttl_seconds": 3600.0,
        "embedder": {"kind": "onnx", "name": "all-MiniLM-L6-v2-int8", "dimension": 384},
        "vector_type": "float32",
        "false_hit_rate": {"estimate": None, "low": None, "high": None, "samples": 0},
        "store": "shared",
    },
    ("get", "/api/semantic-cache/quality"): {
        "policy": "guarded",
        "threshold": 0.92,
        "target_error": 0.02,
        "false_hit_rate": {"estimate": 0.0124, "low": 0.0061, "high": 0.0228, "samples": 1042},
        "would_serve": {"estimate": None, "low": None, "high": None, "samples": 0},
        "by_kind": {"exact": {"estimate": 0.002, "low": 0.0, "high": 0.0092, "samples": 611}},
        "by_policy": {"guarded": {"estimate": 0.0124, "low": 0.0061, "high": 0.0228, "samples": 1042}},
        "by_tenant": {"acme": {"estimate": 0.0124, "low": 0.0061, "high": 0.0228, "samples": 1042}},
        "by_similarity": [{"from": 0.92, "to": 0.94, "labels": 118, "wrong": 6, "low": 0.019, "high": 0.107}],
        "labels": {"shadow": 1042, "miss": 3310, "feedback": 12},
        "unsure": 41,
        "comparator": {"name": "facts", "version": "4be1a52c07"},
        "embedder": "aaf8a192c0",
        "verifier": None,
        "learned": False,
        "tightened": False,
        "level": 0,
        "at": "2026-11-28T12:00:03.512Z",
        "history": [],
    },
}
"""Recorded responses by method and path."""


class Problem(BaseModel):
    """An error (RFC 9457). Some errors have more members; docs/http-api.md lists them."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "urn:ragherd:problem:invalid-request",
                "title": "Invalid request",
                "status": 422,
                "detail": "options.num_ctx: unknown field",
                "instance": "/query",
                "request_id": "ffb017c5ce714d94b949a8e8ebdc84c6",
                "errors": [{"field": "options.num_ctx", "message": "unknown field"}],
            }
        },
    )

    type: str = Field(description="The kind of error, for programs.")
    title: str
    status: int
    detail: str = Field(description="The error, for people.")
    instance: str = Field(description="The path of the request.")
    request_id: str = Field(description="The ID of the request, also in the log.")


EVENTS: Final = "text/event-stream"
Responses = dict[int | str, dict[str, Any]]

ERRORS: Final[Responses] = {
    "default": {
        "description": "An error. A 503 has `Retry-After`.",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""For every endpoint without other error responses. Otherwise FastAPI describes validation errors that are never sent.
"""


def errors_of(api: str, error_body: Callable[[RagherdError], dict[str, Any]]) -> Responses:
    """Returns error responses in the form of another API."""
    error = InvalidRequest("model: is required", errors=[{"field": "model", "message": "is required"}])
    content = {"application/json": {"example": error_body(error)}}
    return {"default": {"description": f"An error in {api}'s form. A 503 has `Retry-After`.", "content": content}}


def stream_of(media_type: str, *events: str) -> Responses:
    """Returns the description of a streamed answer. `events` are the names of its events."""
    return {200: {"content": {media_type: {"schema": _event(events) if media_type == EVENTS else {"type": "string"}}}}}


def _event(names: Sequence[str]) -> dict[str, Any]:
    """Describes one server-sent event. Before OpenAPI 3.2, a stream's schema describes its items."""
    name = {"event": {"type": "string", "enum": list(names)}} if names else {}
    return {"type": "object", "required": ["data", *name], "properties": {**name, "data": {"type": "string"}}}


def body_of(kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a body that the endpoint parses itself, so that FastAPI does not know it."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


EMBEDDING_PATHS: Final = ("/api/embed", "/v1/embeddings")
_KEY: Final = {"type": "http", "scheme": "bearer", "description": "A key from `API_KEYS` or `ADMIN_KEYS`."}


class DescribedApp(FastAPI):
    """FastAPI with the parts of the description that all endpoints share.

    `max_inputs` is EMBED_MAX_INPUTS. `keyed` lists the roles that need a key.
    """

    def __init__(self, *, max_inputs: int, keyed: Collection[Role], **named: Any) -> None:
        super().__init__(**named)
        self._max_inputs = max_inputs
        self._keyed = keyed

    def build_middleware_stack(self) -> ASGIApp:
        """Leaves out FastAPI's outermost layers: unhandled errors are for `RequestContext`, bodies for `BodyLimit`."""
        app: ASGIApp = AsyncExitStackMiddleware(self.router)
        app = ExceptionMiddleware(app, handlers=self.exception_handlers)
        for added, arguments, options in reversed(self.user_middleware):
            app = added(app, *arguments, **options)
        return app

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            components = described["components"]
            components["securitySchemes"] = {"key": _KEY}
            components["schemas"]["Problem"] = Problem.model_json_schema()
            for body in _bodies(described):
                components["schemas"].update(body.pop("$defs", {}))
            self._describe_keys(described["paths"])
            for path in EMBEDDING_PATHS:
                _limit_inputs(_bodies_of(described["paths"][path]["post"])[0], self._max_inputs)
            for (method, path), example in EXAMPLES.items():
                _success_json(described["paths"][path][method])["example"] = example
        return super().openapi()

    def _describe_keys(self, paths: dict[str, Any]) -> None:
        """Marks the endpoints that need a key, by their declared roles."""
        for route in iter_route_contexts(self.routes):
            for method in route.methods or ():
                operation = paths.get(_described_path(route.path or ""), {}).get(method.lower())
                if operation is not None and route.endpoint is not None:
                    operation["security"] = [{"key": []}] if role_of(route.endpoint) in self._keyed else []


def _described_path(path: str) -> str:
    """Returns a route's path as OpenAPI has it: without the types of its parameters."""
    return re.sub(r":\w+}", "}", path)


def _success_json(operation: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON content of the first success response."""
    status = min(status for status in operation["responses"] if status.startswith("2"))
    content: dict[str, Any] = operation["responses"][status]["content"]["application/json"]
    return content


def _bodies(described: dict[str, Any]) -> list[dict[str, Any]]:
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    return [schema for operation in operations for schema in _bodies_of(operation)]


def _bodies_of(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the schema of each content type of an operation's body."""
    return [kind["schema"] for kind in operation.get("requestBody", {}).get("content", {}).values()]


def _limit_inputs(schema: dict[str, Any], max_inputs: int) -> None:
    for kind in schema["properties"]["input"]["anyOf"]:
        if kind["type"] == "array":
            kind["maxItems"] = max_inputs


FOLDER: Final = Path(__file__).parent / "swagger_ui"
ASSETS: Final = frozenset(
    {"favicon-32x32.png", "oauth2-redirect.js", "start.js", "swagger-ui-bundle.js", "swagger-ui.css"}
)
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the style sheet contains icons
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Allows only the package's scripts, no other hosts, and no framing."""
PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
ASSET_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=3600"}

router = APIRouter(route_class=CheckedRoute, prefix="/docs", include_in_schema=False)


@router.get("")
@needs("all")
def page() -> Response:
    """Swagger UI for `/openapi.json`."""
    return file_of(FOLDER, "index.html", PAGE_HEADERS)


@router.get("/oauth2-redirect")
@needs("all")
def oauth2_redirect() -> Response:
    """The redirect URI for Swagger UI's OAuth 2 login."""
    return file_of(FOLDER, "oauth2-redirect.html", PAGE_HEADERS)


@router.get("/{asset}")
@needs("all")
def asset(asset: str) -> Response:
    """A script, style sheet or image."""
    if asset not in ASSETS:
        raise NotFound("No such asset.")
    return file_of(FOLDER, asset, ASSET_HEADERS)


def file_of(folder: Path, name: str, headers: Mapping[str, str]) -> Response:
    """Blocks on the file. The callers are plain functions, so FastAPI runs them in a thread."""
    return Response((folder / name).read_bytes(), headers=headers, media_type=guess_type(name)[0])
