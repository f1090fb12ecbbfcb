"""Runs the service in the test's event loop on a free port, and builds its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import httpx
import uvicorn

from api.app import create_app
from api.settings import (
    AccessSettings,
    BreakerRedisSettings,
    BreakerSettings,
    BulkheadSettings,
    CacheSettings,
    DocumentSettings,
    EmbedderSettings,
    OllamaSettings,
    PartitionSettings,
    PoolSettings,
    RedisSettings,
    RetrievalSettings,
    ServerSettings,
    Settings,
    TracingSettings,
)
from worker_config.client_connections import TimedProtocol
from worker_config.connection_guard import ConnectionGuard, ConnectionLimits

CONCERNS: Mapping[str, Any] = {
    "server": ServerSettings,
    "access": AccessSettings,
    "redis": RedisSettings,
    "breaker_redis": BreakerRedisSettings,
    "ollama": OllamaSettings,
    "embedder": EmbedderSettings,
    "pool": PoolSettings,
    "bulkhead": BulkheadSettings,
    "breaker": BreakerSettings,
    "cache": CacheSettings,
    "partitions": PartitionSettings,
    "documents": DocumentSettings,
    "retrieval": RetrievalSettings,
    "tracing": TracingSettings,
}


def make_settings(redis_url: str, ollama_url: str, **concerns: Mapping[str, Any]) -> Settings:
    """Returns settings for tests with the stub's model and embeddings, changed by `concerns`."""
    values: dict[str, dict[str, Any]] = {
        "redis": {
            "url": redis_url,
            "timeout": 1.0,
            "request_budget": 2.0,
        },  # a busy machine does not count as a lost Redis
        "ollama": {"ollama_base_url": ollama_url, "llm_model": "llama3.2", "ollama_warm_up": False},
        "embedder": {"embedder": "ollama", "embed_model": "nomic-embed-text"},
        "pool": {"min_size": 1},
        "cache": {"shadow_rate": 0.0},  # a sampled hit calls the stub once more
    }
    for concern, changes in concerns.items():
        values.setdefault(concern, {}).update(changes)
    return Settings(**{name: made(_env_file=None, **values.get(name, {})) for name, made in CONCERNS.items()})


class Service(Protocol):
    """Starts a worker with settings by group."""

    async def __call__(self, **concerns: Mapping[str, Any]) -> httpx.AsyncClient: ...


@asynccontextmanager
async def running_service(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Runs the service on a free port and yields a client. Several can run at once, each as a worker of the fleet.

    Its connections are those of a worker of gunicorn.
    """
    app = create_app(settings, owns_process=False)
    guard = ConnectionGuard(ConnectionLimits(), app.state.metrics)
    http: Any = partial(TimedProtocol, guard=guard, fast=getattr(app.state, "fast_path", None))
    # A client's thread may connect while the server closes. Gunicorn's deadline would end that connection.
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="on", ws="none", http=http, timeout_graceful_shutdown=20
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(), name="service")
    try:
        while not server.started:
            assert not serving.done(), "the service did not start"
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        # Without TLS here, `verify` only spares each client the reading of certificates.
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def ask(
    client: httpx.AsyncClient, question: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Any:
    """Returns the JSON of an answered question. Fails the test if it was not answered."""
    response = await client.post("/query", json={"question": question, **more}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()
