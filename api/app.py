"""The application: routes, middleware, error handlers. Everything it needs is opened by its lifespan."""

from __future__ import annotations

import os
import secrets
import socket

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api import __version__, wiring
from api.endpoints import (
    breaker,
    bulkhead,
    cache,
    cache_explain,
    cache_warm_up,
    docs_page,
    documents,
    error_responses,
    health,
    ollama_api,
    openai_api,
    query,
    reports,
)
from api.endpoints.access import Role
from api.endpoints.body_limit import FORM_BYTES, BodyLimit
from api.endpoints.description import ERRORS, DescribedApp
from api.endpoints.head_requests import HeadRequests
from api.endpoints.request_context import RequestContext
from api.endpoints.request_head import RequestHead
from api.observability.http_middleware import HttpMetrics
from api.observability.metrics import Metrics
from api.settings import AccessSettings, Settings


def create_app(settings: Settings) -> FastAPI:
    """An app for one worker process. Opens nothing: that is the lifespan's."""
    worker = worker_id()
    metrics = Metrics(CollectorRegistry(), __version__)
    app = DescribedApp(
        most_inputs=settings.embedder.embed_max_inputs,
        keyed=_keyed_roles(settings.access),
        title="Ragherd",
        version=__version__,
        summary="A RAG query service in front of Ollama whose workers share one memory in Redis.",
        lifespan=wiring.lifespan(settings, worker, metrics),
        responses=ERRORS,
        docs_url=None,  # `docs_page` has it, without the scripts of another host
        redoc_url=None,
        redirect_slashes=False,  # `unrouted` does it, without the caller's `Host`
    )
    operated = (health, breaker, bulkhead, cache, cache_explain, cache_warm_up, reports, docs_page)
    app.state.metrics = metrics
    for endpoints in (query, documents, ollama_api, openai_api, *operated):
        app.include_router(endpoints.router)
    error_responses.install(app)
    app.add_middleware(
        BodyLimit,
        limit=settings.server.max_body_bytes,
        file_limit=settings.documents.document_max_bytes + FORM_BYTES,
        timeout=settings.server.body_timeout,
    )
    app.add_middleware(RequestHead, allowed=settings.access.hosts())
    app.add_middleware(RequestContext, worker=worker)
    app.add_middleware(HttpMetrics, metrics=metrics)
    app.add_middleware(HeadRequests)
    return app


def _keyed_roles(access: AccessSettings) -> set[Role]:
    """Who needs a key, as `Access` has it."""
    roles: dict[Role, bool] = {"user": bool(access.api_keys), "admin": bool(access.admin_keys)}
    return {role for role, keyed in roles.items() if keyed}


def worker_id() -> str:
    """Unique over the fleet and readable: host, process, and four hex digits against reuse of a pid."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
