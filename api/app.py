"""The application: routes, middleware, error handlers. Its lifespan opens everything it needs."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api import __version__
from api.endpoints import (
    administration,
    dashboard,
    description,
    documents,
    experiments,
    forwarded_api,
    health,
    keys,
    mcp_api,
    model_admin,
    ollama_api,
    openai_api,
    problems,
    quality,
    query,
    resilience,
    semantic_cache,
)
from api.endpoints.access import Role
from api.endpoints.access_log import AccessLog
from api.endpoints.description import ERRORS, DescribedApp
from api.endpoints.fast_path import FastPath, FastPathMiddleware
from api.endpoints.middleware import (
    FORM_BYTES,
    BodyLimit,
    HeadRequests,
    HttpMetrics,
    RequestContext,
    RequestHead,
    TracedRequests,
)
from api.endpoints.routes import DirectRoutes
from api.observability.logs import FrequentEvent
from api.observability.metrics import Metrics
from api.settings import AccessSettings, ServerSettings, Settings
from api.wiring import worker

ROUTERS: Final = (
    query.router,
    quality.feedback_router,
    documents.router,
    ollama_api.router,
    model_admin.router,
    openai_api.router,
    forwarded_api.openai_router,
    forwarded_api.anthropic_router,
    mcp_api.router,
    health.router,
    resilience.breaker_router,
    resilience.bulkhead_router,
    resilience.backends_router,
    semantic_cache.router,
    quality.router,
    semantic_cache.explain_router,
    semantic_cache.warm_up_router,
    experiments.router,
    experiments.start_router,
    administration.router,
    keys.router,
    keys.create_router,
    health.reports_router,
    description.router,
    dashboard.router,
    health.history_router,
)
"""In the order of the OpenAPI description: the service, then its operation."""

NO_TELEMETRY: Final = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's spans have the query string, which may contain a question. `observability.tracing` makes others."""


def create_app(settings: Settings, *, owns_process: bool = True) -> FastAPI:
    """Makes the app of one worker process. Opens nothing: the lifespan does.

    `owns_process`: it sets up the garbage collector and the threads of the process, in which nothing else runs.
    """
    name = worker_id()
    metrics = Metrics(CollectorRegistry(), __version__)
    app = DescribedApp(
        max_inputs=settings.embedder.embed_max_inputs,
        keyed=_keyed_roles(settings.access),
        title="Ragherd",
        version=__version__,
        summary="A RAG query service in front of Ollama. All workers share a cache and a breaker in Redis.",
        lifespan=worker.lifespan(settings, name, metrics, owns_process=owns_process),
        responses=ERRORS,
        docs_url=None,  # `description` serves it without scripts of another host
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        redirect_slashes=False,  # `unrouted` redirects without the caller's `Host`
    )
    app.state.metrics = metrics
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    routes = [route for router in ROUTERS for route in router.routes]
    app.add_middleware(DirectRoutes, routes=routes, handlers=app.exception_handlers)
    app.add_middleware(
        BodyLimit,
        limit=settings.server.max_body_bytes,
        file_limits={
            documents.PATH: settings.documents.document_max_bytes + FORM_BYTES,
            forwarded_api.TRANSCRIPTIONS: settings.server.max_audio_bytes + FORM_BYTES,
        },
        timeout=settings.server.body_timeout,
    )
    app.add_middleware(RequestHead, allowed=settings.access.hosts())
    app.add_middleware(RequestContext, worker=name)
    log = _access_log(settings.server)
    app.add_middleware(HttpMetrics, metrics=metrics, log=log)
    fast = FastPath(name, metrics, log)
    app.add_middleware(FastPathMiddleware, fast=fast)
    if not settings.tracing.is_on:
        app.state.fast_path = fast  # a span begins in `TracedRequests`
    else:
        app.add_middleware(TracedRequests)
    app.add_middleware(HeadRequests)
    return app


def _access_log(server: ServerSettings) -> AccessLog | None:
    """Returns the access log, or None if it is off."""
    if not server.access_log:
        return None
    event = FrequentEvent("ragherd.access", "request")
    return AccessLog(event, hits=server.access_log_hit_rate, questions=server.log_questions)


def _keyed_roles(access: AccessSettings) -> set[Role]:
    """Describes which routes need a key, as `Access` enforces it."""
    roles: dict[Role, bool] = {
        "user": access.is_keyed,
        "operator": access.require_keys,
        "admin": bool(access.admin_keys),
    }
    return {role for role, keyed in roles.items() if keyed}


def worker_id() -> str:
    """Unique in the fleet and readable: host, process, and four hex digits in case a pid is reused."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
