"""Opens what a worker needs, hands it to the endpoints as typed state, and closes it in reverse.

Only this module and its parts, `wiring_backends`, `wiring_cache` and `wiring_knowledge`, name adapters. A worker starts
whether or not Redis and Ollama are there.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypedDict

import structlog
from fastapi import FastAPI

from api import __version__
from api.background import Background
from api.embedders.onnx import OnnxEmbedder
from api.embedders.remembered import RememberedEmbedder
from api.endpoints.access import Access
from api.endpoints.event_wire import Streaming
from api.endpoints.worker_state import WorkerState
from api.knowledge.chunking import estimated_tokens
from api.observability.log_format import configure_logging
from api.observability.metrics import Metrics
from api.observability.query_events import QueryEvents
from api.observability.redis_events import RedisEvents
from api.observability.worker_facts import WorkerFacts
from api.ports.models import Embedder
from api.reachability import BackendReachability
from api.redis_store.client import RedisAddress
from api.redis_store.cluster_gate import ClusterGate
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.opening import opened_gate
from api.redis_store.workers import WorkerRegistry
from api.settings import Settings
from api.wiring_backends import WorkerBackends, open_backends
from api.wiring_cache import CacheParts, open_cache
from api.wiring_knowledge import WorkerKnowledge, open_knowledge

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager["LifespanState"]]


class LifespanState(TypedDict):
    """What Starlette puts into `request.state`."""

    worker: WorkerState


def lifespan(settings: Settings, worker: str, metrics: Metrics) -> Lifespan:
    """The lifespan of one worker's app."""

    @asynccontextmanager
    async def opened(_: FastAPI) -> AsyncIterator[LifespanState]:
        configure_logging(settings.server.log_level)
        async with AsyncExitStack() as stack:
            state = await _Worker(settings, worker, metrics, stack).open()
            # What is alive now lives as long as the worker: out of the collector's way, whose pauses are then short.
            gc.collect()
            gc.freeze()
            yield {"worker": state}

    return opened


class _Worker:
    """Opens one worker's resources on a stack, in the order in which they need each other."""

    def __init__(self, settings: Settings, worker: str, metrics: Metrics, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._id = worker
        self._metrics = metrics
        self._stack = stack
        self._log = structlog.get_logger("ragherd.worker")
        self._keys = Keys(*settings.key_layout)
        redis = settings.redis
        self._registry: WorkerRegistry | None = None
        self._address = RedisAddress(redis.url, redis.timeout, redis.connect_timeout, redis.max_connections)

    async def open(self) -> WorkerState:
        """Everything open, this worker known to the fleet, its background tasks running."""
        background = await self._stack.enter_async_context(Background())
        gate = await self._open_gate()
        parts = CacheParts(self._settings, self._id, self._metrics, gate, self._no_search_module)
        events = parts.events
        await gate.check()
        opening = open_backends(self._settings, self._id, self._metrics, gate, self._address, self._live_workers)
        backends = await self._stack.enter_async_context(opening)
        plain, count = await self._open_embedder(backends, events)
        embedder = RememberedEmbedder(plain)
        made = WorkerKnowledge(self._settings, self._id, self._metrics, gate, parts.indexes, embedder, plain, count)
        knowledge = await self._stack.enter_async_context(open_knowledge(made))
        failover = backends.failover(events)
        opened = open_cache(parts, self._address, embedder, backends.digests, failover, knowledge.retriever)
        cache = await self._stack.enter_async_context(opened)
        guards = (backends.breakers, backends.bulkheads)
        facts = WorkerFacts(self._id, __version__, backends.facts, *guards, gate, events, self._metrics)
        registry = self._registry = WorkerRegistry(gate, self._keys, self._id, facts.fields)
        self._stack.push_async_callback(registry.leave)
        self._stack.push_async_callback(parts.counters.flush)
        for forever in (gate.watch, parts.counters.keep_flushing, registry.keep_renewing, facts.keep_measuring):
            background.start(forever)
        for forever in (*backends.tasks(), *cache.tasks()):
            background.start(forever)
        backends.warm_up.start_all()
        self._log.info("worker_started", worker=self._id, redis=gate.is_up, version=__version__)
        return WorkerState(
            worker=self._id,
            version=__version__,
            default_model=self._settings.ollama.llm_model,
            access=Access(self._settings.access.tenants_by_key(), self._settings.access.admins()),
            streaming=Streaming(self._settings.server.stream_heartbeat, self._settings.server.stream_stall_timeout),
            queries=cache.queries,
            explainer=cache.explainer,
            library=knowledge.library,
            embeddings=backends.embeddings(events),
            catalog=backends.catalog,
            num_ctx=self._settings.ollama.ollama_num_ctx,
            breakers=backends.breakers,
            bulkheads=backends.bulkheads,
            pool=facts,
            cache=cache.figures,
            invalidator=cache.invalidator,
            warm_ups=cache.warm_ups,
            fleet=registry,
            reachability=BackendReachability(gate.check, lambda: gate.any_up, backends.reachable),
            metrics=self._metrics,
        )

    def _live_workers(self) -> int:
        return self._registry.known_live if self._registry else 1

    # -- Redis --------------------------------------------------------------------------------------------------------

    async def _open_gate(self) -> RedisGate | ClusterGate:
        opening = opened_gate(self._address, partial(RedisEvents, self._metrics), self._mismatch)
        return await self._stack.enter_async_context(opening)

    def _mismatch(self, message: str) -> None:
        self._log.error("redis_url_mismatch", message=message)

    def _no_search_module(self) -> None:
        self._log.error(
            "redis_without_search",
            message="This Redis has no search module, so there is no semantic cache: "
            "use Redis 8, or Redis Stack 7.4, with its query engine.",
        )

    # -- Ollama -------------------------------------------------------------------------------------------------------

    async def _open_embedder(
        self, backends: WorkerBackends, events: QueryEvents
    ) -> tuple[Embedder, Callable[[str], int]]:
        """The embedder, and how many tokens it makes of a text."""
        settings = self._settings.embedder
        if settings.embedder == "onnx":
            opening = OnnxEmbedder.open(settings.embed_model_path, settings.embed_timeout)
            onnx = await self._stack.enter_async_context(opening)
            return onnx, onnx.count_tokens
        return await backends.open_embedder(self._stack, events), estimated_tokens
