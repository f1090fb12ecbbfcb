"""Opens what a worker needs, hands it to the endpoints as typed state, and closes it in reverse.

Only this module names adapters. A worker starts whether or not Redis and Ollama are there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TypedDict

import structlog
from fastapi import FastAPI

from api import __version__
from api.background import Background
from api.breaker.fleet_breaker import FleetBreaker
from api.breaker.following import kept_current
from api.breaker.state import Policy
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.bulkhead.following import kept_alive
from api.bulkhead.state import Policy as BulkheadPolicy
from api.embedders.onnx import OnnxEmbedder
from api.embedders.remembered import RememberedEmbedder
from api.endpoints.access import Access
from api.endpoints.worker_state import WorkerState
from api.errors import StoreUnavailable
from api.observability.breaker_metrics import BreakerMetrics
from api.observability.bulkhead_metrics import BulkheadMetrics
from api.observability.log_format import configure_logging
from api.observability.metrics import Metrics
from api.observability.query_events import QueryEvents
from api.observability.redis_events import RedisEvents
from api.observability.worker_facts import WorkerFacts
from api.ollama.deadlines import Deadlines
from api.ollama.embedding import OllamaEmbedder
from api.ollama.generation import OllamaModel
from api.ollama.models import OllamaModels
from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.ports import Embedder
from api.query.answer_query import QueryService
from api.query.guarded_embedder import GuardedEmbedder
from api.query.shared_answers import SharedAnswers
from api.reachability import BackendReachability
from api.redis_store.answer_cache import RedisAnswerCache
from api.redis_store.breaker_store import RedisBreakerStore
from api.redis_store.bulkhead_store import RedisBulkheadStore
from api.redis_store.cache_report import CacheFigures, CacheLimits
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.counters import CacheCounters
from api.redis_store.embedder_registry import EmbedderRegistry
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.semantic_index import SemanticIndex
from api.redis_store.workers import WorkerRegistry
from api.settings import BreakerSettings, Settings

GENERATE = "ollama"
EMBED = "ollama-embed"

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
            yield {"worker": await _Worker(settings, worker, metrics, stack).open()}

    return opened


class _Worker:
    """Opens one worker's resources on a stack, in the order in which they need each other."""

    def __init__(self, settings: Settings, worker: str, metrics: Metrics, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._id = worker
        self._metrics = metrics
        self._stack = stack
        self._log = structlog.get_logger("ragherd.worker")
        self._keys = Keys(settings.redis.prefix)
        redis = settings.redis
        self._registry: WorkerRegistry | None = None
        self._address = RedisAddress(redis.url, redis.timeout, redis.connect_timeout, redis.max_connections)

    async def open(self) -> WorkerState:
        """Everything open, this worker known to the fleet, its background tasks running."""
        background = await self._stack.enter_async_context(Background())
        gate = await self._open_gate()
        index = SemanticIndex(gate, self._keys, self._no_search_module)
        counters = CacheCounters(gate, self._keys)
        events = QueryEvents(self._metrics, counters, log_questions=self._settings.server.log_questions)
        await gate.check()
        pool = await self._open_pool()
        breakers = {GENERATE: await self._open_breaker(gate, GENERATE)}
        bulkheads = {GENERATE: await self._open_bulkhead(gate, GENERATE)}
        embedder = RememberedEmbedder(await self._open_embedder(gate, pool, breakers, bulkheads))
        with suppress(StoreUnavailable):
            await index.prepare(embedder)
        shared = SharedAnswers(
            self._answer_cache(gate, index, counters) if self._settings.cache.enabled else None,
            embedder,
            events,
            self._settings.cache.similarity_threshold,
        )
        facts = WorkerFacts(self._id, __version__, pool, breakers, bulkheads, gate, events, self._metrics)
        registry = self._registry = WorkerRegistry(gate, self._keys, self._id, facts.fields)
        self._stack.push_async_callback(registry.leave)
        self._stack.push_async_callback(counters.flush)
        for forever in (gate.watch, counters.keep_flushing, registry.keep_renewing, facts.keep_measuring):
            background.start(forever)
        self._log.info("worker_started", worker=self._id, redis=gate.is_up, version=__version__)
        return WorkerState(
            worker=self._id,
            version=__version__,
            default_model=self._settings.ollama.llm_model,
            access=Access(self._settings.access.tenants_by_key(), self._settings.access.admins()),
            queries=QueryService(self._model(pool), bulkheads[GENERATE], breakers[GENERATE], shared, events),
            breakers=breakers,
            bulkheads=bulkheads,
            pool=facts,
            cache=CacheFigures(gate, index, counters, embedder, self._cache_limits()),
            fleet=registry,
            reachability=BackendReachability(gate.check, OllamaModels(pool).reachable),
            metrics=self._metrics,
        )

    # -- Redis --------------------------------------------------------------------------------------------------------

    async def _open_gate(self) -> RedisGate:
        client = await self._stack.enter_async_context(short_commands(self._address))
        return RedisGate(client, self._address.max_connections, RedisEvents(self._metrics))

    def _no_search_module(self) -> None:
        self._log.error(
            "redis_without_search",
            message="This Redis has no search module, so there is no semantic cache: "
            "use Redis 8, or Redis Stack 7.4, with its query engine.",
        )

    def _answer_cache(self, gate: RedisGate, index: SemanticIndex, counters: CacheCounters) -> RedisAnswerCache:
        cache = self._settings.cache
        return RedisAnswerCache(
            gate,
            self._keys,
            index,
            counters,
            ttl_ms=round(cache.ttl * 1000),
            stale_ms=round(cache.stale_ttl * 1000),
            max_size=cache.max_size,
        )

    def _cache_limits(self) -> CacheLimits:
        cache = self._settings.cache
        return CacheLimits(
            cache.enabled, cache.max_size, cache.similarity_threshold, cache.ttl, self._settings.embedder.embedder
        )

    # -- Ollama -------------------------------------------------------------------------------------------------------

    async def _open_pool(self) -> OllamaPool:
        pool, ollama = self._settings.pool, self._settings.ollama
        limits = PoolLimits(
            min_size=pool.min_size,
            max_size=pool.max_size,
            max_keepalive=pool.max_keepalive,
            keepalive_expiry=pool.keepalive_expiry,
            timeout=pool.timeout,
            connect_timeout=ollama.ollama_connect_timeout,
        )
        return await self._stack.enter_async_context(open_pool(ollama.base_urls[0], limits))

    def _model(self, pool: OllamaPool) -> OllamaModel:
        ollama = self._settings.ollama
        return OllamaModel(
            pool,
            Deadlines(
                connect=ollama.ollama_connect_timeout,
                first_token=ollama.ollama_first_token_timeout,
                cold_first_token=ollama.ollama_cold_first_token_timeout,
                inter_token=ollama.ollama_inter_token_timeout,
                total=ollama.ollama_total_timeout,
            ),
        )

    async def _open_breaker(self, gate: RedisGate, name: str) -> FleetBreaker:
        policy = _policy(self._settings.breaker)
        reader = partial(blocking_reader, self._address)
        store = RedisBreakerStore(gate, reader, self._keys, name, policy, self._id)
        self._metrics.breaker_known(name)
        breaker = FleetBreaker(name, policy, store, self._id, listeners=(BreakerMetrics(self._metrics, self._id),))
        return await self._stack.enter_async_context(kept_current(breaker))

    async def _open_bulkhead(self, gate: RedisGate, name: str) -> FleetBulkhead:
        policy = _bulkhead_policy(self._settings, name)
        reader = partial(blocking_reader, self._address)
        store = RedisBulkheadStore(gate, reader, self._keys, name, policy, self._id)
        self._metrics.bulkhead_known(name)
        events = BulkheadMetrics(self._metrics)
        bulkhead = FleetBulkhead(name, policy, store, self._id, events=events, live_workers=self._live_workers)
        return await self._stack.enter_async_context(kept_alive(bulkhead))

    def _live_workers(self) -> int:
        return self._registry.known_live if self._registry else 1

    async def _open_embedder(
        self,
        gate: RedisGate,
        pool: OllamaPool,
        breakers: dict[str, FleetBreaker],
        bulkheads: dict[str, FleetBulkhead],
    ) -> Embedder:
        settings = self._settings.embedder
        if settings.embedder == "onnx":
            opening = OnnxEmbedder.open(settings.embed_model_path, settings.embed_timeout)
            return await self._stack.enter_async_context(opening)
        known = EmbedderRegistry(gate, self._keys, settings.embed_model)
        breakers[EMBED] = await self._open_breaker(gate, EMBED)
        bulkheads[EMBED] = await self._open_bulkhead(gate, EMBED)
        embedder = OllamaEmbedder.open(
            pool,
            settings.embed_model,
            timeout=settings.embed_timeout,
            remembered=await known.recall(),
            on_identity=known.remember,
        )
        opened = await self._stack.enter_async_context(embedder)
        return GuardedEmbedder(opened, bulkheads[EMBED], breakers[EMBED])


def _bulkhead_policy(settings: Settings, name: str) -> BulkheadPolicy:
    """An embedding waits no longer than it may take: without it the answer comes all the same."""
    bulkhead = settings.bulkhead
    if name == EMBED:
        wait = min(bulkhead.max_wait, settings.embedder.embed_timeout)
        return BulkheadPolicy(bulkhead.embed_max_concurrent, bulkhead.max_queue, wait)
    return BulkheadPolicy(bulkhead.max_concurrent, bulkhead.max_queue, bulkhead.max_wait)


def _policy(settings: BreakerSettings) -> Policy:
    return Policy(
        enabled=settings.enabled,
        failure_threshold=settings.failure_threshold,
        timeout_ms=round(settings.timeout * 1000),
        timeout_max_ms=round(settings.timeout_max * 1000),
        half_open_max_calls=settings.half_open_max_calls,
        minimum_calls=settings.minimum_calls,
        failure_rate=settings.failure_rate_threshold,
        slow_rate=settings.slow_call_rate_threshold,
        slow_ms=round(settings.slow_call_duration * 1000),
        window_s=settings.window,
        stable_ms=round(settings.stable_time * 1000),
    )
