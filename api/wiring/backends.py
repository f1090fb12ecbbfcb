"""Opens the pool, breakers, probes and warm-up of each Ollama, and combines them into one model and embedder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from api.backends.affinity import PrefixAffinity
from api.backends.choice import EMBEDDING_CHARGED, Backend, Backends, FailoverPolicy, OverdueCalls
from api.backends.embedder import AgreedIdentity, EmbeddingCalls, FailoverEmbedder
from api.backends.failover import Generations
from api.breaker.fleet_breaker import FleetBreaker, kept_current
from api.breaker.state import BreakerPolicy, State
from api.bulkhead.bulkhead_rules import BulkheadPolicy
from api.bulkhead.fleet_bulkhead import FleetBulkhead, kept_alive
from api.observability.metric_series import BreakerMetrics
from api.observability.metrics import Metrics
from api.observability.worker_facts import BackendFacts
from api.ollama.backend_health import BackendWatch, WarmUp, load_embedder, load_llm
from api.ollama.embedding import OllamaEmbedder, OllamaEmbeddingModel
from api.ollama.generation import Deadlines, OllamaModel, ReadingSpeeds
from api.ollama.models import KnownDigests, OllamaCatalog, OllamaModels, Pinned
from api.ollama.pool import OllamaPools, PoolLimits, open_pools
from api.ports.coordination import Bulkhead
from api.ports.inference import BackendEmbedder, EmbeddingModel, LanguageModel
from api.ports.telemetry import Telemetry
from api.ports.tracing import Tracing
from api.redis_store.client import AnyHealthGated, RedisAddress, blocking_reader
from api.redis_store.keys import Keys
from api.redis_store.stores.backend_health import BackendHealthStore
from api.redis_store.stores.breaker import RedisBreakerStore
from api.redis_store.stores.bulkhead import RedisBulkheadStore
from api.redis_store.stores.documents.embeddings import EmbedderRegistry
from api.redis_store.stores.fleet import FleetRetries, RedisLeaderLease
from api.redis_store.stores.prefixes import RedisPrefixStore
from api.settings import BreakerSettings, Settings
from api.values import BackendHealth

T = TypeVar("T")

EMBED: Final = "-embed"
"""Suffix of the names of breakers and bulkheads for embeddings."""


class WorkerBackends:
    """The opened backends. `breakers` begins with the first backend's for generations."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        metrics: Metrics,
        telemetry: Telemetry,
        client: AnyHealthGated,
        guard_client: AnyHealthGated,
        guard_address: RedisAddress,
        pools: OllamaPools,
        live_workers: Callable[[], int],
        tracing: Tracing,
    ) -> None:
        ollama = settings.ollama
        self._settings = settings
        self._worker = worker
        self._metrics = metrics
        self._telemetry = telemetry
        self._client = client
        self._guard_client = guard_client
        self._guard_address = guard_address
        self._keys = Keys(*settings.key_layout)
        self._pools = pools
        self._live_workers = live_workers
        self._tracing = tracing
        self._pinned = Pinned(ollama.ollama_keep_alive, ollama.ollama_num_ctx)
        self._models = {name: OllamaModels(pool) for name, pool in pools.items()}
        self.catalog = OllamaCatalog(pools, is_drained=self.is_drained)
        self._overdue: list[OverdueCalls] = []
        self._places = dict(zip(pools, ollama.places, strict=True))
        self.breakers: dict[str, FleetBreaker] = {}
        self.bulkheads: dict[str, FleetBulkhead] = {}
        self.warm_up = self._warm_up()
        prober = RedisLeaderLease(client, self._keys.prober, worker)
        urls = {name: pool.base_url for name, pool in pools.items()}
        board = BackendHealthStore(client, self._keys, urls, worker)
        self.digests = KnownDigests(ollama.ollama_num_ctx)
        self.prefixes = self._prefix_store()
        self._affinities: list[PrefixAffinity] = []
        self._in_memory: dict[str, frozenset[str]] = {}
        on_health = self._forget_prefixes if self.prefixes is not None else None
        every, started = ollama.ollama_probe_interval, self.warm_up.start
        self.watch = BackendWatch(self._models, prober, board, every, started, self.digests, on_health)
        self.fleet_retries = FleetRetries(client, self._keys, pools.retries)
        self.facts = BackendFacts(pools, self.watch.known.get, metrics, self._places, self.is_drained)
        self.watch.speeds = self._speeds = {name: ReadingSpeeds() for name in pools}

    async def reachable(self) -> bool:
        """Returns whether any backend answers now."""
        return any(await asyncio.gather(*(models.reachable() for models in self._models.values())))

    def is_drained(self, backend: str) -> bool:
        """Returns whether an admin has drained a backend, as far as this worker knows; no I/O."""
        return backend in self.breakers and self.breakers[backend].drained

    def is_closed(self) -> bool:
        """Returns whether the breakers for generations are closed, as far as this worker knows; no I/O.

        Those of drained backends do not matter. False if all are drained.
        """
        breakers = [self.breakers[name] for name in self._pools if not self.is_drained(name)]
        return bool(breakers) and all(one.effective_state is State.CLOSED and not one.rejects for one in breakers)

    def has_waiting(self) -> bool:
        """Returns whether a generation of this worker waits for a permit; no I/O."""
        return any(self.bulkheads[name].waiting for name in self._pools)

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks for the worker's lifetime."""
        keeping = [pool.keep_minimum for pool in self._pools.values() if pool.limits.min_size]
        return [self.watch.keep_looking, self.fleet_retries.keep_in_step, *keeping]

    async def open_guards(self, stack: AsyncExitStack) -> None:
        """Opens a breaker and a bulkhead for each backend and kind of call, kept current while the stack is open."""
        kinds = ["", EMBED] if self._settings.embedder.embedder == "ollama" else [""]
        for name in (f"{backend}{kind}" for backend in self._pools for kind in kinds):
            await self._open_breaker(stack, name)
            await self._open_bulkhead(stack, name)

    async def _open_breaker(self, stack: AsyncExitStack, name: str) -> None:
        policy = _breaker_policy(self._settings.breaker)
        key = self._keys.breaker(name)[0]
        reader = partial(blocking_reader, self._guard_address, key=key)
        store = RedisBreakerStore(self._guard_client, reader, self._keys, name, policy, self._worker)
        self._metrics.breakers.known(name)
        listeners = (BreakerMetrics(self._metrics.breakers, self._worker, on_resume=self.warm_up.start),)
        address = self._places[name].address if name in self._places else ""
        breaker = FleetBreaker(name, policy, store, self._worker, listeners=listeners, address=address)
        self.breakers[name] = await stack.enter_async_context(kept_current(breaker))
        self._guard_client.of(key).after_recovery(breaker.refresh)

    async def _open_bulkhead(self, stack: AsyncExitStack, name: str) -> None:
        policy = _bulkhead_policy(self._settings, name)
        reader = partial(blocking_reader, self._guard_address)
        store = RedisBulkheadStore(self._guard_client, reader, self._keys, name, policy, self._worker)
        self._metrics.bulkhead_known(name)
        telemetry, live = self._telemetry, self._live_workers
        bulkhead = FleetBulkhead(name, policy, store, self._worker, telemetry=telemetry, live_workers=live)
        self.bulkheads[name] = await stack.enter_async_context(kept_alive(bulkhead))

    def generations(self, telemetry: Telemetry) -> Generations:
        """All backends as one, each behind its breaker."""
        ollama = self._settings.ollama
        deadlines = Deadlines(
            first_token=ollama.ollama_first_token_timeout,
            cold_first_token=ollama.ollama_cold_first_token_timeout,
            inter_token=ollama.ollama_inter_token_timeout,
            total=ollama.ollama_total_timeout,
        )
        members: list[Backend[LanguageModel]] = []
        for name, pool in self._pools.items():
            model = OllamaModel(pool, deadlines, self._pinned, self._speeds[name])
            member = self._member(name, name, self._tracing.language_model(model, pool.base_url))
            member.overdue = OverdueCalls(name, model, self.breakers[name], deadlines.first_token, telemetry)
            members.append(member)
            self._overdue.append(member.overdue)
        max_prompt = ollama.ollama_max_prompt_tokens
        affinity = self._affinity(telemetry)
        return Generations(self._joined(members), self._pools.retries, deadlines.total, telemetry, max_prompt, affinity)

    def _affinity(self, telemetry: Telemetry) -> PrefixAffinity | None:
        if self.prefixes is None:
            return None
        calls, limit = self._settings.ollama.ollama_prefix_affinity, self._settings.bulkhead.max_concurrent
        self._affinities.append(PrefixAffinity(self.prefixes, calls, limit, telemetry))
        return self._affinities[-1]

    def _prefix_store(self) -> RedisPrefixStore | None:
        """Returns None with a single backend, or if the setting turns prefix affinity off."""
        ollama = self._settings.ollama
        if len(self._pools) < 2 or not ollama.ollama_prefix_affinity:
            return None
        room = ollama.ollama_prefix_prompts or self._settings.bulkhead.max_concurrent
        return RedisPrefixStore(self._client, self._guard_client, self._keys, list(self._pools), room)

    async def _forget_prefixes(self, found: Mapping[str, BackendHealth]) -> None:
        """Forgets the prompts of models that have left a backend's memory, and of drained backends."""
        assert self.prefixes is not None
        for name, health in found.items():
            if self.is_drained(name):
                await self.prefixes.forget(name)
            elif health.reachable:
                gone = self._in_memory.get(name, frozenset()) - health.resident
                self._in_memory[name] = health.resident
                if gone:
                    await self.prefixes.forget(name, gone)

    async def remembered_prompts(self) -> Mapping[str, int]:
        """Returns how many prompts the fleet remembers of each backend; empty without prefix affinity or Redis."""
        return {} if self.prefixes is None else await self.prefixes.counts()

    async def aclose(self) -> None:
        """Releases the permits of calls that were given up."""
        await asyncio.gather(*(affinity.aclose() for affinity in self._affinities))
        await asyncio.gather(*(overdue.aclose() for overdue in self._overdue))

    def _member(self, name: str, guard: str, service: T) -> Backend[T]:
        """One backend for one kind of calls. `guard`: the name of their bulkhead and breaker."""
        place, breaker = self._places[name], self.breakers[guard]
        member = Backend(name, service, self._bulkhead(guard), breaker, tier=place.tier, weight=place.weight)
        member.drain, member.wants_probe = self.breakers[name], lambda: breaker.wants_probe
        return member

    def _joined(self, members: Sequence[Backend[T]]) -> Backends[T]:
        return Backends(members, self.watch.known.get, self.digests.had)

    def embeddings(self, telemetry: Telemetry) -> EmbeddingCalls:
        """Clients' own embedding calls, behind questions. With EMBEDDER=onnx they share the guards of generations."""
        members: list[Backend[EmbeddingModel]] = []
        behind_questions = self._settings.embedder.embedder == "ollama"
        for name, pool in self._pools.items():
            guard = f"{name}{EMBED}" if behind_questions else name
            members.append(self._member(name, guard, OllamaEmbeddingModel(pool, self._pinned)))
        backends = self._joined(members)
        total = self._settings.ollama.ollama_total_timeout
        return EmbeddingCalls(backends, self._pools.retries, total, telemetry, background=behind_questions)

    async def open_embedders(
        self, stack: AsyncExitStack, telemetry: Telemetry
    ) -> tuple[FailoverEmbedder, FailoverEmbedder]:
        """All backends as one embedder (EMBEDDER=ollama), each behind its breaker: one for questions, one for
        documents.
        """
        settings = self._settings.embedder
        known = EmbedderRegistry(self._client, self._keys, settings.embed_model)
        remembered = await known.recall()
        members: list[Backend[BackendEmbedder]] = []
        for name, pool in self._pools.items():
            opening = OllamaEmbedder.open(
                pool,
                settings.embed_model,
                timeout=settings.embed_timeout,
                remembered=remembered,
                on_identity=known.remember,
                pinned=self._pinned,
            )
            members.append(self._member(name, f"{name}{EMBED}", await stack.enter_async_context(opening)))
        agreed = AgreedIdentity(self._joined(members), settings.embed_model)
        asked = FailoverPolicy(settings.embed_timeout, charged=EMBEDDING_CHARGED)
        stored = FailoverPolicy(
            self._settings.documents.document_embed_timeout, charged=EMBEDDING_CHARGED, waits_again=True
        )
        retries = self._pools.retries
        return (
            FailoverEmbedder(agreed, asked, retries, telemetry),
            FailoverEmbedder(agreed, stored, retries, telemetry, background=True),
        )

    def _bulkhead(self, name: str) -> Bulkhead:
        return self._tracing.bulkhead(self.bulkheads[name])

    def _warm_up(self) -> WarmUp:
        ollama, embedder = self._settings.ollama, self._settings.embedder
        loads = []
        if ollama.ollama_warm_up:
            loads.append(load_llm(ollama.llm_model, self._pinned))
            if embedder.embedder == "ollama":
                loads.append(load_embedder(embedder.embed_model, self._pinned))
        leases = {name: RedisLeaderLease(self._client, self._keys.warm_up(name), self._worker) for name in self._pools}
        return WarmUp(self._pools, self.bulkheads, leases, tuple(loads), self.is_drained)


@asynccontextmanager
async def open_backends(
    settings: Settings,
    worker: str,
    metrics: Metrics,
    telemetry: Telemetry,
    client: AnyHealthGated,
    guard_client: AnyHealthGated,
    guard_address: RedisAddress,
    live_workers: Callable[[], int] = lambda: 1,
    tracing: Tracing | None = None,
) -> AsyncIterator[WorkerBackends]:
    """The worker's hold on every URL of OLLAMA_BASE_URL; `live_workers`: how many share it.

    Breakers and bulkheads are kept in the Redis behind `guard_client`, at `guard_address`; all else behind `client`.
    On exit it releases its leases.
    """
    async with AsyncExitStack() as stack:
        tracing = tracing or Tracing()
        opening = open_pools(settings.ollama.base_urls, _limits(settings), tracing.on_send)
        pools = await stack.enter_async_context(opening)
        backends = WorkerBackends(
            settings, worker, metrics, telemetry, client, guard_client, guard_address, pools, live_workers, tracing
        )
        await backends.open_guards(stack)
        await backends.watch.begin()
        client.of(Keys(*settings.key_layout).backend("")).on_recovery(backends.watch.recall)
        stack.push_async_callback(backends.watch.leave)
        stack.push_async_callback(backends.warm_up.aclose)
        stack.push_async_callback(backends.aclose)
        yield backends


def _limits(settings: Settings) -> PoolLimits:
    pool = settings.pool
    return PoolLimits(
        min_size=pool.min_size,
        max_size=pool.max_size,
        max_keepalive=pool.max_keepalive,
        keepalive_expiry=pool.keepalive_expiry,
        timeout=pool.timeout,
        connect_timeout=settings.ollama.ollama_connect_timeout,
    )


def _bulkhead_policy(settings: Settings, name: str) -> BulkheadPolicy:
    """A bulkhead's limits. For embeddings, a quarter of the permits is reserved for questions."""
    bulkhead = settings.bulkhead
    if not name.endswith(EMBED):
        limits = bulkhead.max_concurrent, bulkhead.max_queue, bulkhead.max_wait
        return BulkheadPolicy(*limits, batch_after=bulkhead.batch_after, tenant_share=bulkhead.tenant_share)
    limit = bulkhead.embed_max_concurrent
    reserve = min(limit - 1, max(1, limit // 4))
    limits = limit, bulkhead.max_queue, bulkhead.max_wait
    return BulkheadPolicy(*limits, reserve=reserve, tenant_share=bulkhead.tenant_share)


def _breaker_policy(settings: BreakerSettings) -> BreakerPolicy:
    return BreakerPolicy(
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
