"""Opens what a worker needs, hands it to the endpoints as typed state, and closes it in reverse.

Only this module and `wiring_backends` name adapters. A worker starts whether or not Redis and Ollama are there.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
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
from api.errors import StoreUnavailable
from api.flights.fleet_flights import Flights
from api.flights.following import kept_in_step
from api.observability.cache_events import CacheEvents
from api.observability.flight_metrics import FlightMetrics
from api.observability.log_format import configure_logging
from api.observability.metrics import Metrics
from api.observability.query_events import QueryEvents
from api.observability.redis_events import RedisEvents
from api.observability.worker_facts import WorkerFacts
from api.ports.models import Embedder
from api.query.answer_query import QueryService
from api.query.cache_warmer import CacheWarmer
from api.query.condense import Condenser
from api.query.explain import Explainer
from api.query.failover import Failover
from api.query.fresh_answer import FreshAnswers
from api.query.invalidate import Invalidator
from api.query.refresh import Refresher
from api.query.shared_answers import CachePolicy, SharedAnswers
from api.query.single_flight import SingleFlight
from api.query.warm_ups import WarmUps
from api.reachability import BackendReachability
from api.redis_store.answer_cache import RedisAnswerCache
from api.redis_store.cache_report import CacheFigures, CacheLimits
from api.redis_store.cache_sweep import RedisCacheSweep
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.condensed_questions import RedisCondensedQuestions
from api.redis_store.counters import CacheCounters
from api.redis_store.duty import RedisDuty
from api.redis_store.flight_store import RedisFlightStore
from api.redis_store.gate import RedisGate
from api.redis_store.index_keeper import IndexKeeper
from api.redis_store.index_schema import algorithm_for
from api.redis_store.keys import Keys
from api.redis_store.semantic_index import SemanticIndex
from api.redis_store.warm_up_jobs import RedisWarmUpJobs
from api.redis_store.workers import WorkerRegistry
from api.settings import Settings
from api.wiring_backends import WorkerBackends, open_backends

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
        self._keys = Keys(settings.redis.prefix)
        redis = settings.redis
        self._registry: WorkerRegistry | None = None
        self._address = RedisAddress(redis.url, redis.timeout, redis.connect_timeout, redis.max_connections)

    async def open(self) -> WorkerState:
        """Everything open, this worker known to the fleet, its background tasks running."""
        background = await self._stack.enter_async_context(Background())
        gate = await self._open_gate()
        index = SemanticIndex(gate, self._keys, self._no_search_module, algorithm_for(self._settings.cache.max_size))
        counters = CacheCounters(gate, self._keys)
        events = QueryEvents(self._metrics, counters, log_questions=self._settings.server.log_questions)
        cache_events = CacheEvents(self._metrics, counters)
        await gate.check()
        opening = open_backends(self._settings, self._id, self._metrics, gate, self._address, self._live_workers)
        backends = await self._stack.enter_async_context(opening)
        embedder = RememberedEmbedder(await self._open_embedder(backends, events))
        with suppress(StoreUnavailable):
            await index.prepare(embedder)
        cache = self._answer_cache(gate, index, counters) if self._settings.cache.enabled else None
        failover = backends.failover(events)
        warm_ups = None
        if cache is not None:
            keeper = IndexKeeper(gate, self._keys, index, RedisDuty(gate, self._keys.janitor, self._id))
            background.start(keeper.keep)
            warmer = CacheWarmer(cache, embedder, backends.digests, failover, cache_events)
            warm_ups = await self._open_warm_ups(gate, warmer, cache_events)
        policy = _cache_policy(self._settings)
        shared = SharedAnswers(cache, embedder, backends.digests, events, policy)
        fresh = FreshAnswers(failover, shared, events)
        flights = await self._open_flights(gate)
        condenser = self._condenser(gate, failover, flights, events)
        refresher = Refresher(fresh, flights, events)
        self._stack.push_async_callback(refresher.aclose)
        guards = (backends.breakers, backends.bulkheads)
        facts = WorkerFacts(self._id, __version__, backends.facts, *guards, gate, events, self._metrics)
        registry = self._registry = WorkerRegistry(gate, self._keys, self._id, facts.fields)
        self._stack.push_async_callback(registry.leave)
        self._stack.push_async_callback(counters.flush)
        for forever in (gate.watch, counters.keep_flushing, registry.keep_renewing, facts.keep_measuring):
            background.start(forever)
        for forever in backends.tasks():
            background.start(forever)
        backends.warm_up.start_all()
        self._log.info("worker_started", worker=self._id, redis=gate.is_up, version=__version__)
        return WorkerState(
            worker=self._id,
            version=__version__,
            default_model=self._settings.ollama.llm_model,
            access=Access(self._settings.access.tenants_by_key(), self._settings.access.admins()),
            streaming=Streaming(self._settings.server.stream_heartbeat, self._settings.server.stream_stall_timeout),
            queries=QueryService(condenser, shared, SingleFlight(flights, fresh), refresher, events),
            explainer=Explainer(cache, embedder, backends.digests, policy),
            embeddings=backends.embeddings(events),
            catalog=backends.catalog,
            num_ctx=self._settings.ollama.ollama_num_ctx,
            breakers=backends.breakers,
            bulkheads=backends.bulkheads,
            pool=facts,
            cache=CacheFigures(gate, index, counters, embedder, self._cache_limits()),
            invalidator=Invalidator(RedisCacheSweep(gate, self._keys), embedder, cache_events),
            warm_ups=warm_ups,
            fleet=registry,
            reachability=BackendReachability(gate.check, backends.reachable),
            metrics=self._metrics,
        )

    def _live_workers(self) -> int:
        return self._registry.known_live if self._registry else 1

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
            on_evicted=self._metrics.cache_evicted,
        )

    async def _open_warm_ups(self, gate: RedisGate, warmer: CacheWarmer, events: CacheEvents) -> WarmUps:
        """Ends before what it needs: a question that is broken off by a closed pool would count as failed."""
        jobs = RedisWarmUpJobs(gate, self._keys, self._id)
        warm_ups = WarmUps(jobs, warmer, events, self._settings.cache.warm_concurrency)
        (await self._stack.enter_async_context(Background())).start(warm_ups.keep_going)
        return warm_ups

    async def _open_flights(self, gate: RedisGate) -> Flights:
        store = RedisFlightStore(gate, partial(blocking_reader, self._address), self._keys, self._id)
        patience = self._settings.cache.coalesce_timeout
        flights = Flights(store, patience, FlightMetrics(self._metrics))
        return await self._stack.enter_async_context(kept_in_step(flights))

    def _condenser(
        self, gate: RedisGate, failover: Failover, flights: Flights, events: QueryEvents
    ) -> Condenser | None:
        cache = self._settings.cache
        if not (cache.enabled and cache.condense):
            return None
        return Condenser(failover, flights, RedisCondensedQuestions(gate, self._keys, round(cache.ttl * 1000)), events)

    def _cache_limits(self) -> CacheLimits:
        cache = self._settings.cache
        return CacheLimits(
            cache.enabled, cache.max_size, cache.similarity_threshold, cache.ttl, self._settings.embedder.embedder
        )

    # -- Ollama -------------------------------------------------------------------------------------------------------

    async def _open_embedder(self, backends: WorkerBackends, events: QueryEvents) -> Embedder:
        settings = self._settings.embedder
        if settings.embedder == "onnx":
            opening = OnnxEmbedder.open(settings.embed_model_path, settings.embed_timeout)
            return await self._stack.enter_async_context(opening)
        return await backends.open_embedder(self._stack, events)


def _cache_policy(settings: Settings) -> CachePolicy:
    cache = settings.cache
    return CachePolicy(
        threshold=cache.similarity_threshold,
        revalidate=min(cache.stale_while_revalidate, cache.stale_ttl),
        stale=cache.stale_ttl,
        budget=settings.redis.request_budget,
    )
