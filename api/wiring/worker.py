"""Opens what a worker needs, hands it to the endpoints as typed state, and closes it in reverse.

Only the modules of `api.wiring` name adapters. A worker starts with or without Redis and Ollama.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypedDict

import httpx
import structlog
from fastapi import FastAPI

from api import __version__
from api.backends.embedder import RememberedEmbedder
from api.cancellation import Background
from api.embedders.minilm import MARKS, MAX_TOKENS
from api.embedders.onnx import open_onnx
from api.endpoints.access import Access
from api.endpoints.dashboard import LiveFeed, read_figures
from api.endpoints.health import AppState, Reachability
from api.endpoints.known_keys import KeyFiles, KnownKeys, WrongKeys
from api.endpoints.mcp_api import McpServer
from api.endpoints.streaming import Streaming
from api.errors import SettingsError
from api.knowledge.chunking import estimated_tokens
from api.knowledge.ingestion import Charge
from api.observability.history_keeper import HistoryKeeper, HistoryReader, Observed
from api.observability.logs import configure_logging
from api.observability.metrics import Metrics
from api.observability.worker_facts import LoopLag, WorkerFacts
from api.observability.worker_telemetry import WorkerTelemetry
from api.ports.access import TokenVerifier
from api.ports.limits import UNLIMITED, Limits, plan_of
from api.ports.tracing import Tracing
from api.query.limits import Limiter
from api.query.shadow_calls import SpareTime
from api.redis_store.keys import Keys
from api.redis_store.schema import FleetSchema
from api.redis_store.stores.access_keys import RedisAccessKeys
from api.redis_store.stores.audit import RedisAuditLog
from api.redis_store.stores.fleet import RedisLeaderLease, WorkerRegistry
from api.redis_store.stores.history_store import RedisHistory
from api.redis_store.stores.tenant_erasure import RedisTenantErasure
from api.settings import AccessSettings, Settings
from api.values import Usage
from api.wiring.backends import WorkerBackends, open_backends
from api.wiring.cache import CacheParts, WorkerCache, open_cache
from api.wiring.knowledge import Embedders, WorkerKnowledge, open_knowledge, open_reranker
from api.wiring.redis import WorkerRedis, open_redis

YOUNG_OBJECTS: Final = 10_000
"""New objects after which the garbage collector runs. With Python's default it took 7 % of a miss: requests in progress
have thousands of objects, which it looked at again and again.
"""
SWITCH_SECONDS: Final = 0.0005
"""How long a thread that runs Python code may keep the event loop waiting each time the loop needs the GIL. Python's
default is 0.005, and one callback may need the GIL many times.
"""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager["LifespanState"]]


class LifespanState(TypedDict):
    """The typed content of Starlette's `request.state`."""

    worker: AppState
    live: LiveFeed
    tracing: Tracing


def lifespan(settings: Settings, worker: str, metrics: Metrics, *, owns_process: bool) -> Lifespan:
    """The lifespan of one worker's app."""

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[LifespanState]:
        configure_logging(settings.server.log_level, texts=settings.server.log_questions)
        _share_heaps()
        async with AsyncExitStack() as stack:
            try:
                opening = _Worker(settings, worker, metrics, stack)
                state = await opening.open(replaces=getattr(app.state, "replaces", False))
            except SettingsError as error:
                # A wrong model file is detected only here, and uvicorn would log the whole traceback.
                structlog.get_logger("ragherd.worker").error("settings_wrong", message=str(error))
                raise
            if owns_process:
                # Objects of now live as long as the worker. The collector's pauses are shorter if it cannot see them.
                gc.collect()
                gc.freeze()
                gc.set_threshold(YOUNG_OBJECTS)
                sys.setswitchinterval(SWITCH_SECONDS)
            feed = LiveFeed(partial(read_figures, state), lambda: getattr(app.state, "draining", False))
            yield {"worker": state, "live": feed, "tracing": opening.tracing}

    return opened


M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def _share_heaps() -> None:
    """Lets all threads use two heaps of glibc's allocator. By itself each thread has one, and keeps what it freed."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class _Worker:
    """Opens one worker's resources on a stack, in order of dependency."""

    def __init__(self, settings: Settings, worker: str, metrics: Metrics, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._id = worker
        self._metrics = metrics
        self._stack = stack
        self._log = structlog.get_logger("ragherd.worker")
        self._keys = Keys(*settings.key_layout)
        self._registry: WorkerRegistry | None = None
        self.tracing = Tracing()

    async def open(self, *, replaces: bool) -> AppState:
        """Opens everything, registers this worker with the fleet, and starts its background tasks.

        `replaces`: it replaces an earlier worker of its replica.
        """
        self._metrics.worker_started()  # first, so that workers which fail to start count too
        telemetry = await self._open_tracing()
        background = await self._stack.enter_async_context(Background())
        redis = await self._stack.enter_async_context(open_redis(self._settings, self._metrics))
        client = redis.main.client
        lag = LoopLag(self._metrics)
        parts = CacheParts(
            self._settings, self._id, self._metrics, client, self._pace, lambda: lag.is_busy, self.tracing, telemetry
        )
        parts.live_workers = self._live_workers
        self._stack.push_async_callback(parts.limiter.aclose)
        schema = await self._agreed(redis)
        backends = await self._open_backends(redis, parts)
        knowledge, cache = await self._open_memory(redis, backends, parts)
        known_keys, key_store = self._known_keys(parts)
        facts = self._facts(redis, backends, parts, schema, cache)
        registry = self._registered(parts, facts)
        erasure = RedisTenantErasure(
            client, redis.guards.client, self._keys, self._id, tuple(backends.bulkheads), self._pace
        )
        background.start(erasure.keep_repeating)
        own = (
            known_keys.keep_following,
            lag.keep_measuring,
            parts.counters.keep_flushing,
            parts.recent.keep_writing,
            registry.keep_renewing,
        )
        others = (facts.keep_measuring, schema.keep_agreeing, *redis.tasks(), *backends.tasks(), *cache.tasks())
        for forever in (*own, *others):
            background.start(forever)
        history = await self._open_history(parts, backends, cache, registry, replaces=replaces)
        backends.warm_up.start_all()
        self._log.info("worker_started", worker=self._id, redis=client.is_up, version=__version__)
        access = self._access(known_keys, await self._open_tokens())
        if files := self._settings.access.key_files:
            read = self._settings.access.users_and_admins
            background.start(KeyFiles(files, read, access.adopt, self._metrics.key_file_changed).keep_following)
        return self._state(
            redis, backends, parts, knowledge, cache, facts, registry, history, erasure, access, key_store
        )

    def _facts(
        self, redis: WorkerRedis, backends: WorkerBackends, parts: CacheParts, schema: FleetSchema, cache: WorkerCache
    ) -> WorkerFacts:
        return WorkerFacts(
            self._id,
            __version__,
            backends.facts,
            backends.breakers,
            backends.bulkheads,
            redis,
            parts.telemetry,
            self._metrics,
            str(schema.own),
            cache.quality,
            parts.near,
        )

    def _registered(self, parts: CacheParts, facts: WorkerFacts) -> WorkerRegistry:
        """Returns the registry. When the worker stops, it leaves the registry and sends its last counts."""
        registry = self._registry = WorkerRegistry(parts.client, self._keys, self._id, facts.fields)
        self._stack.push_async_callback(registry.leave)
        self._stack.push_async_callback(parts.counters.flush)
        self._stack.callback(facts.measure)
        self._stack.push_async_callback(parts.served.aclose)
        return registry

    def _known_keys(self, parts: CacheParts) -> tuple[KnownKeys, RedisAccessKeys]:
        store = RedisAccessKeys(parts.client, self._keys)
        return KnownKeys(store, parts.keys_changed, self._settings.access.key_trust_seconds), store

    async def _open_tokens(self) -> TokenVerifier | None:
        """Returns what verifies tokens, if there is a provider. Raises `SettingsError` if the extra is missing."""
        access = self._settings.access
        if access.oidc_issuer is None:
            return None
        try:
            from api.endpoints.oidc import OidcTokens
        except ImportError:
            raise SettingsError("OIDC_ISSUER: install `ragherd[oidc]`") from None
        http = await self._stack.enter_async_context(httpx.AsyncClient(follow_redirects=False))
        audience = access.oidc_audience or ""
        return OidcTokens(http, access.oidc_issuer, audience, access.oidc_tenant_claim, access.oidc_role_claim)

    def _access(self, known: KnownKeys, tokens: TokenVerifier | None) -> Access:
        access = self._settings.access
        wrong = WrongKeys(access.wrong_key_delay, self._metrics.key_rejected)
        return Access(
            access.tenants_by_key(),
            access.admins(),
            access.batch(),
            known=known,
            wrong=wrong,
            tokens=tokens,
            required=access.require_keys,
            limits=_tenant_limits(access),
            counts_hits=not access.rate_limit_free_hits,
        )

    async def _open_backends(self, redis: WorkerRedis, parts: CacheParts) -> WorkerBackends:
        opening = open_backends(
            self._settings,
            self._id,
            self._metrics,
            parts.telemetry,
            redis.main.client,
            redis.guards.client,
            redis.guards.address,
            self._live_workers,
            self.tracing,
        )
        return await self._stack.enter_async_context(opening)

    async def _open_tracing(self) -> type[WorkerTelemetry]:
        """Starts tracing, if a collector is set and the extra is installed. Returns the class of the telemetry."""
        settings = self._settings.tracing
        if not settings.is_on:
            return WorkerTelemetry
        settings.export()
        try:
            from api.observability.traced_steps import TracedTelemetry
            from api.observability.tracing import open_tracing
        except ImportError:
            advice = "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there are no traces: install `ragherd[otel]`."
            self._log.warning("tracing_not_installed", message=advice)
            return WorkerTelemetry
        opening = open_tracing(
            self._id,
            self._metrics,
            console=settings.otel_traces_exporter == "console",
            hit_share=settings.trace_hit_sample_rate,
            latest=settings.latest_conventions,
            captures=settings.captures_content and self._settings.server.log_questions,
        )
        try:
            self.tracing = await self._stack.enter_async_context(opening)
        except ValueError as error:
            raise SettingsError(f"OTEL_*: {error}") from error
        return TracedTelemetry

    async def _open_history(
        self,
        parts: CacheParts,
        backends: WorkerBackends,
        cache: WorkerCache,
        registry: WorkerRegistry,
        *,
        replaces: bool,
    ) -> HistoryReader | None:
        """Starts to keep the history, unless it is disabled. Counts this worker's start."""
        if parts.history is None:
            return None
        parts.history.open["started"] += 1
        if replaces:
            parts.history.open["restarts"] += 1
        store = RedisHistory(parts.client, self._keys, self._id)
        size = self._settings.pool.max_size * len(self._settings.ollama.base_urls)
        observed = Observed(registry.live, size, backends.bulkheads, backends.breakers, cache.quality)
        lease = RedisLeaderLease(parts.client, self._keys.history_lease, self._id)
        keeper = HistoryKeeper(store, lease, observed, self._pace, self._metrics.history_written)
        self._stack.push_async_callback(keeper.leave)
        (await self._stack.enter_async_context(Background())).start(keeper.keep)
        return HistoryReader(store, observed, next(iter(backends.breakers)))

    async def _agreed(self, redis: WorkerRedis) -> FleetSchema:
        """Connects to Redis and agrees with the fleet on the layout of keys."""
        schema = FleetSchema(redis.main.client, self._keys, self._id, __version__, self._no_shared_memory)
        if redis.guards is not redis.main:
            schema.cover(redis.guards.client)
        await redis.check()
        self._metrics.redis_is(up=redis.main_is_up, breaker_up=redis.breaker_is_up)  # the next steps may take a while
        return schema

    async def _open_memory(
        self, redis: WorkerRedis, backends: WorkerBackends, parts: CacheParts
    ) -> tuple[WorkerKnowledge, WorkerCache]:
        """Opens the knowledge base and the cache."""
        embedders = await self._open_embedders(backends, parts.telemetry)
        settings = self._settings.embedder
        here = settings.embedder == "onnx"
        model = Path(settings.embed_model_path or "all-MiniLM-L6-v2").name if here else settings.embed_model
        embedder = RememberedEmbedder(self.tracing.embedder(embedders.questions, model, here=here))
        reranker = await open_reranker(self._stack, self._settings)
        made = WorkerKnowledge(
            self._settings,
            self._id,
            self._metrics,
            parts.telemetry,
            redis.main.client,
            parts.indexes,
            embedder,
            embedders,
            reranker,
            self._pace,
            _embedding_charge(_tenant_limits(self._settings.access), parts.limiter),
        )
        knowledge = await self._stack.enter_async_context(open_knowledge(made))
        await parts.open_verifier(self._stack)
        generations = backends.generations(parts.telemetry)
        opened = open_cache(
            parts,
            redis.main.address,
            embedder,
            backends.digests,
            generations,
            knowledge.retriever,
            embedders.documents,
            SpareTime(backends.is_closed, backends.has_waiting),
        )
        return knowledge, await self._stack.enter_async_context(opened)

    def _state(
        self,
        redis: WorkerRedis,
        backends: WorkerBackends,
        parts: CacheParts,
        knowledge: WorkerKnowledge,
        cache: WorkerCache,
        facts: WorkerFacts,
        registry: WorkerRegistry,
        history: HistoryReader | None,
        erasure: RedisTenantErasure,
        access: Access,
        key_store: RedisAccessKeys,
    ) -> AppState:
        return AppState(
            worker=self._id,
            version=__version__,
            default_model=self._settings.ollama.llm_model,
            access=access,
            key_store=key_store,
            limiter=parts.limiter,
            streaming=Streaming(self._settings.server.stream_heartbeat, self._settings.server.stream_stall_timeout),
            queries=cache.queries,
            explainer=cache.explainer,
            documents=knowledge.documents,
            passages=knowledge.retriever,
            mcp=McpServer(parts.telemetry, __version__, self._settings.access.hosts()),
            embeddings=backends.embeddings(parts.telemetry),
            embed_max_inputs=self._settings.embedder.embed_max_inputs,
            catalog=backends.catalog,
            num_ctx=self._settings.ollama.ollama_num_ctx,
            max_num_ctx=self._settings.ollama.ollama_max_num_ctx,
            pins_options=self._settings.ollama.ollama_pin_options,
            generate_context=self._settings.ollama.ollama_generate_context,
            admin_passthrough=self._settings.ollama.ollama_admin_passthrough,
            breakers=backends.breakers,
            bulkheads=backends.bulkheads,
            pool_report=facts.report,
            cache_report=cache.figures.report,
            invalidator=cache.invalidator,
            feedback=cache.feedback,
            quality=cache.quality,
            warm_ups=cache.warm_ups,
            experiments=cache.experiments,
            experiment_control=cache.experiment_control,
            audit=RedisAuditLog(redis.main.client, self._keys),
            erase_tenant=erasure.erase,
            live_workers=registry.live,
            remembered_prompts=backends.remembered_prompts,
            history=history.read if history is not None else None,
            recent=parts.recent.latest,
            price_per_million_tokens=self._settings.server.price_per_million_tokens,
            reachability=_reachability(redis, backends),
            redis_warnings=lambda: redis.warnings,
            exposition=self._metrics.exposition,
        )

    def _live_workers(self) -> int:
        return self._registry.known_live if self._registry else 1

    def _pace(self) -> float:
        return self._registry.pace if self._registry else 1.0

    def _no_shared_memory(self, conflict: str) -> None:
        self._log.error("redis_schema_conflict", message=f"{conflict} This worker serves without the shared memory.")

    # -- Ollama -------------------------------------------------------------------------------------------------------

    async def _open_embedders(self, backends: WorkerBackends, telemetry: WorkerTelemetry) -> Embedders:
        settings = self._settings.embedder
        if settings.embedder == "onnx":
            opening = open_onnx(settings.embed_model_path, settings.embed_timeout)
            onnx = await self._stack.enter_async_context(opening)
            model = onnx.model
            limit = MAX_TOKENS - MARKS
            return Embedders(onnx.questions, onnx.documents, model.count_tokens, limit, model.tokenizer)
        questions, documents = await backends.open_embedders(self._stack, telemetry)
        return Embedders(questions, documents, estimated_tokens)


def _tenant_limits(access: AccessSettings) -> Limits:
    per_minute = access.rate_limit_requests_per_minute or 0, access.rate_limit_tokens_per_minute or 0
    budgets = access.token_budget_per_day or 0, access.token_budget_per_month or 0
    return Limits(*per_minute, *budgets, access.concurrent_streams or 0)


def _embedding_charge(limits: Limits, limiter: Limiter) -> Charge | None:
    """Charges the tokens of documents to their tenants. None without a limit on tokens."""
    if not limits.tokens_per_minute:
        return None
    return lambda tenant, tokens: limiter.spend(plan_of(tenant, "", UNLIMITED, limits), Usage(tokens, 0))


def _reachability(redis: WorkerRedis, backends: WorkerBackends) -> Reachability:
    client = redis.main.client
    return Reachability(client.check, lambda: client.any_up, redis.guards.client.check, backends.reachable)
