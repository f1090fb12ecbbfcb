"""Opens the cache's parts of a worker: its index, flights, refresher and warm-ups, and the query flow on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from api import __version__
from api.backends.failover import Generations
from api.cancellation import Background
from api.embedders.answer_model import AnswerModel, is_installed
from api.embedders.verifier import PRIOR, SETTING, OnnxVerifier, prior_of
from api.errors import EmbeddingUnavailable, SettingsError, StoreUnavailable
from api.knowledge.retrieval import Retriever
from api.languages.identify import ONLY_ENGLISH, Languages, languages_of
from api.observability.experiment_figures import report, summary
from api.observability.history_figures import MinuteCounts
from api.observability.metrics import Metrics
from api.observability.worker_telemetry import WarmUpTelemetry, WorkerTelemetry
from api.ports.answer_quality import PolicyName, QualityState, Verifier, Versions
from api.ports.inference import Embedder, ModelDigests
from api.ports.telemetry import Telemetry
from api.ports.tracing import Tracing
from api.quality.calibration import Prior, read_prior
from api.quality.comparator import Comparator
from api.quality.keeper import QualityKeeper, QualityView
from api.quality.policies import QualitySettings
from api.query.cache import CacheBudget, CachePolicy, SemanticCache
from api.query.cache_key import CacheKeyBuilder
from api.query.condense import Condenser
from api.query.experiments import ExperimentControl, ExperimentFollower, ExperimentView
from api.query.explain import Explainer
from api.query.generate import FreshAnswer, FreshAnswers, Refresher
from api.query.grounding import GroundedCheck, PassageRetriever, PromptBuilder
from api.query.judge import ModelJudge
from api.query.labels import CONCURRENCY, LabelCollector, Labelling
from api.query.limits import Limiter
from api.query.prompt import PromptTemplate, load_template
from api.query.service import QueryService
from api.query.shadow_calls import ShadowCalls, SpareTime
from api.query.warm_up import CacheWarmer, Invalidator, WarmUps
from api.redis_store.client import AnyHealthGated, RedisAddress, blocking_reader, is_single
from api.redis_store.keys import Keys
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.cache.answers import RedisAnswerCache, RedisCondensedQuestions
from api.redis_store.stores.cache.index_keeper import IndexKeeper
from api.redis_store.stores.cache.near import NearCache
from api.redis_store.stores.cache.report import CacheFigures, CacheLimits
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.cache.sweep import RedisCacheSweep
from api.redis_store.stores.cache.warm_up_jobs import RedisWarmUpJobs
from api.redis_store.stores.documents.document_records import RedisDocuments
from api.redis_store.stores.documents.work import RedisDeletions
from api.redis_store.stores.experiments import RedisExperiments
from api.redis_store.stores.feedback import RedisFeedback, ServedAnswers
from api.redis_store.stores.fleet import CacheCounters, RedisLeaderLease
from api.redis_store.stores.flights import RedisFlightStore
from api.redis_store.stores.history_store import RecentOutcomes
from api.redis_store.stores.label_store import RedisLabels
from api.redis_store.stores.limits import RedisLimits
from api.redis_store.stores.quality_store import RedisQuality, RedisVerifierModels
from api.settings import EmbedderSettings, Settings, validated_variant
from api.single_flight.fleet_flights import FleetFlights, running_flights

ANSWERS: Final = 64
"""Fresh answers of one worker that wait to be compared."""


class CacheParts:
    """The index and counters, made before the first request to Redis."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        metrics: Metrics,
        client: AnyHealthGated,
        pace: Callable[[], float] = lambda: 1.0,
        busy: Callable[[], bool] = lambda: False,
        tracing: Tracing | None = None,
        telemetry: type[WorkerTelemetry] = WorkerTelemetry,
    ) -> None:
        self.tracing = tracing or Tracing()
        self.settings = settings
        self.worker = worker
        self.metrics = metrics
        self.client = client
        self.pace = pace
        self.busy = busy
        self.keys = Keys(*settings.key_layout)
        self.max_size = settings.partition_size
        vector_type = settings.cache.vector_type
        self.indexes = SemanticIndexes(client, self.keys, algorithm_for(self.max_size), vector_type)
        self.history = MinuteCounts(metrics.history_lost) if settings.server.history_enabled else None
        self.counters = CacheCounters(client, self.keys, worker, self.history)
        self.served = ServedAnswers(
            client, self.keys, round(settings.server.feedback_ttl * 1000), metrics.feedback_left_out
        )
        log_questions = settings.server.log_questions
        self.recent = RecentOutcomes(client, self.keys, worker, questions=log_questions)
        self.telemetry = telemetry(
            metrics, self.counters, self.served, self.recent, self.history, log_questions=log_questions
        )
        self.verifier: OnnxVerifier | None = None
        self.near: NearCache | None = None
        self.quality_changed = asyncio.Event()
        self.experiments_changed = asyncio.Event()
        self.keys_changed = asyncio.Event()
        self.limits = RedisLimits(client, self.keys)
        self.live_workers: Callable[[], int] = lambda: 1
        self.limiter = Limiter(self.limits, lambda: self.live_workers(), metrics.rate_limited)

    def open_near(self, address: RedisAddress) -> None:
        """Makes the near cache, if there may be one. No I/O."""
        cache = self.settings.cache
        if cache.enabled and cache.near_bytes and is_single(address):
            reader = partial(blocking_reader, address)
            self.near = NearCache(self.client.of(""), reader, self.keys.cache_entries, cache.near_bytes)

    async def open_verifier(self, stack: AsyncExitStack) -> None:
        """Opens the verifier if there is one. Raises `SettingsError` if SEMANTIC_CACHE_VERIFIER_PATH is wrong."""
        cache = self.settings.cache
        if cache.enabled and cache.verifier_path is not None:
            self.metrics.verifier_known()
            models = RedisVerifierModels(self.client, self.keys)
            opening = OnnxVerifier.open(cache.verifier_path, cache.verifier_timeout, models, self.telemetry)
            self.verifier = await stack.enter_async_context(opening)


class _Answering:
    """The parts that questions, explanations and background work share. Each use has its telemetry.

    `cache` is None if the cache is off.
    """

    def __init__(
        self,
        parts: CacheParts,
        embedder: Embedder,
        digests: ModelDigests,
        generations: Generations,
        flights: FleetFlights,
        retriever: Retriever,
        budget: CacheBudget,
        comparator: Comparator,
    ) -> None:
        settings = self._settings = parts.settings
        template = load_template(settings.retrieval.prompt_template_path)
        self._tracing = parts.tracing
        self._embedder = embedder
        self._generations = generations
        self._flights = flights
        self._retriever = retriever
        self._budget = budget
        self._memory = RedisCondensedQuestions(parts.client, parts.keys, round(settings.cache.ttl * 1000))
        self._prompts = PromptBuilder(
            template, settings.ollama.ollama_num_ctx, settings.retrieval.retrieval_nothing_relevant
        )
        self.condenser = Condenser(generations, flights, self._memory, parts.telemetry)
        self.policy = _policy(settings)
        self.cache = _answer_cache(parts) if settings.cache.enabled else None
        self.keys = CacheKeyBuilder(embedder, digests, _grounding(template, settings, retriever.reranking_scope))
        self.view = QualityView(_quality_settings(settings, comparator, parts.verifier))

    def grounded_check(self, telemetry: Telemetry) -> GroundedCheck | None:
        """Returns the check of cached answers' passages, or None if it is off."""
        if not self._settings.cache.grounded_check or self._retriever.reranking_scope:
            return None
        passages = PassageRetriever(self._retriever, self.condenser, telemetry, self._tracing.step)
        return GroundedCheck(passages, self._budget, telemetry)

    def shared(
        self, telemetry: Telemetry, check: GroundedCheck | None = None, verifier: Verifier | None = None
    ) -> SemanticCache:
        """Looks up and stores answers."""
        cache = self._tracing.answer_cache(self.cache) if self.cache is not None else None
        verifier = self._tracing.verifier(verifier) if verifier is not None else None
        return SemanticCache(
            cache,
            self._embedder,
            self.keys,
            telemetry,
            self.policy,
            self._budget,
            check,
            self.view,
            verifier,
            self._tracing.step,
        )

    def fresh(self, telemetry: Telemetry, made: asyncio.Queue[FreshAnswer] | None = None) -> FreshAnswers:
        """Generates answers and stores them. `made`: where they wait to be compared."""
        condenser = Condenser(self._generations, self._flights, self._memory, telemetry)
        passages = PassageRetriever(self._retriever, condenser, telemetry, self._tracing.step)
        return FreshAnswers(self._generations, self.shared(telemetry), passages, self._prompts, telemetry, made)


class WorkerCache:
    """The query flow and what operators ask of the cache. `warm_ups` is None if the cache is off."""

    def __init__(
        self,
        parts: CacheParts,
        embedder: Embedder,
        answering: _Answering,
        flights: FleetFlights,
        comparator: Comparator,
        spare: SpareTime,
    ) -> None:
        settings, telemetry, cache = parts.settings, parts.telemetry, answering.cache
        labels, self.quality = RedisLabels(parts.client, parts.keys), answering.view.state
        self.comparator = comparator
        self._served = parts.served
        made: asyncio.Queue[FreshAnswer] = asyncio.Queue(ANSWERS)
        self.collector: LabelCollector | None = None
        self.shadow: ShadowCalls | None = None
        self._keeper: IndexKeeper | None = None
        self._quality: QualityKeeper | None = None
        self._near = parts.near
        self.warm_ups: WarmUps | None = None
        if cache is not None:
            labelling = _labelling(parts, cache, labels, comparator, answering.view)
            self.collector = LabelCollector(labelling, made)
            self.shadow = _shadow(settings, labelling, answering, labels, spare)
            self._keeper = _keeper(parts)
            self._quality = _quality_keeper(parts, answering.view, embedder)
            self.warm_ups = _warm_ups(parts, cache, embedder, answering)
        fresh = answering.fresh(telemetry, made if cache is not None else None)
        self.refresher = Refresher(fresh, flights, telemetry)
        condenser = answering.condenser if cache is not None and settings.cache.condense else None
        shared = answering.shared(telemetry, answering.grounded_check(telemetry), parts.verifier)
        self.experiments = ExperimentView()
        self.queries = QueryService(
            condenser, shared, flights, fresh, self.refresher, telemetry, self.shadow, self.experiments, parts.limiter
        )
        self.explainer = _explainer(parts, embedder, answering, labels, self.experiments)
        store = RedisExperiments(parts.client, parts.keys)
        model = settings.ollama.llm_model
        self.follower = ExperimentFollower(self.experiments, store, model, parts.experiments_changed)
        validated = partial(validated_variant, settings)
        self.experiment_control = ExperimentControl(
            store, self.follower, validated, report, summary, self.quality, parts.worker
        )
        limits = _limits(settings)
        self.figures = CacheFigures(parts.client, parts.indexes, parts.counters, embedder, limits, self.quality)
        self.invalidator = _invalidator(parts, embedder)
        self.feedback = _feedback(parts, labels, self.quality)

    def labelling_tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks that compare answers. They end before what they use is closed."""
        collecting = [self.collector.keep_collecting] if self.collector is not None else []
        calling = [self.shadow.keep_calling] if self.shadow is not None else []
        following = [self.shadow.keep_rate] if self.shadow is not None else []
        return [*following, *[*collecting, *calling] * CONCURRENCY]

    def count_left(self) -> None:
        """Counts the comparisons that are lost when the worker stops."""
        for one in (self.collector, self.shadow):
            if one is not None:
                one.count_left()

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks for the worker's lifetime."""
        keeping = [self._keeper.keep] if self._keeper is not None else []
        following = [self._quality.keep_following] if self._quality is not None else []
        tracking = [self._near.keep_tracking] if self._near is not None else []
        return [self._served.keep_writing, self.follower.keep_following, *keeping, *following, *tracking]


@asynccontextmanager
async def open_cache(
    parts: CacheParts,
    address: RedisAddress,
    embedder: Embedder,
    digests: ModelDigests,
    generations: Generations,
    retriever: Retriever,
    background_embedder: Embedder,
    spare: SpareTime,
) -> AsyncIterator[WorkerCache]:
    """Opens the worker's cache. On exit unfinished work ends before the resources it needs are closed.

    `background_embedder` embeds answers that are compared in the background, so that questions do not wait for them.
    """
    async with AsyncExitStack() as stack:
        with suppress(StoreUnavailable):
            await parts.indexes.prepare(embedder)
        signals = {
            parts.keys.quality_channel: parts.quality_changed.set,
            parts.keys.experiments_channel: parts.experiments_changed.set,
            parts.keys.access_keys_channel: parts.keys_changed.set,
        }
        store = RedisFlightStore(parts.client, partial(blocking_reader, address), parts.keys, parts.worker, signals)
        budget = CacheBudget(parts.settings.redis.request_budget)
        stack.push_async_callback(budget.aclose)
        flights = FleetFlights(store, parts.settings.cache.coalesce_timeout, parts.telemetry)
        await stack.enter_async_context(running_flights(flights))
        model = await stack.enter_async_context(AnswerModel.open()) if is_installed() else None
        comparator = _comparator(parts, background_embedder, generations, spare, model)
        parts.open_near(address)
        answering = _Answering(parts, embedder, digests, generations, flights, retriever, budget, comparator)
        cache = WorkerCache(parts, embedder, answering, flights, comparator, spare)
        with suppress(StoreUnavailable):
            await cache.follower.follow()  # the first question, too, has its variant
        stack.callback(cache.count_left)
        (await stack.enter_async_context(Background())).start(parts.limiter.keep_renewing)
        stack.push_async_callback(cache.refresher.aclose)
        if cache.warm_ups is not None:
            # On its own stack: a question interrupted by a closed pool would count as failed.
            (await stack.enter_async_context(Background())).start(cache.warm_ups.keep_going)
        labelling = await stack.enter_async_context(Background())
        for forever in cache.labelling_tasks():
            labelling.start(forever)
        if cache.collector is not None:
            stack.push_async_callback(cache.collector.drain)
        yield cache


def _comparator(
    parts: CacheParts, embedder: Embedder, generations: Generations, spare: SpareTime, model: AnswerModel | None
) -> Comparator:
    cache = parts.settings.cache
    judge = None
    if cache.judge_model is not None:
        judge = ModelJudge(generations, cache.judge_model, cache.judge_timeout, parts.telemetry, spare.is_closed)
    return Comparator(embedder, parts.telemetry, judge, model)


def _labelling(
    parts: CacheParts, cache: RedisAnswerCache, store: RedisLabels, comparator: Comparator, view: QualityView
) -> Labelling:
    return Labelling(
        cache,
        store,
        comparator,
        parts.telemetry,
        _languages(parts.settings.embedder),
        policy=view.settings.policy,
        busy=parts.busy,
        keeps_pairs=parts.settings.cache.keep_pairs,
        verifier=parts.verifier.in_background if parts.verifier is not None else None,
    )


def _shadow(
    settings: Settings, labelling: Labelling, answering: _Answering, labels: RedisLabels, spare: SpareTime
) -> ShadowCalls:
    rate, per_minute = settings.cache.shadow_rate, settings.cache.shadow_per_minute
    again = answering.fresh(Telemetry())
    return ShadowCalls(labelling, again, labels, spare, answering.view.state, rate=rate, per_minute=per_minute)


def _explainer(
    parts: CacheParts, embedder: Embedder, answering: _Answering, labels: RedisLabels, experiments: ExperimentView
) -> Explainer:
    return Explainer(
        answering.cache,
        embedder,
        answering.keys,
        answering.policy,
        answering.view,
        experiments,
        answering.grounded_check(Telemetry()),
        labels,
        parts.verifier.in_background if parts.verifier is not None else None,
    )


def _invalidator(parts: CacheParts, embedder: Embedder) -> Invalidator:
    sweep, deletions = RedisCacheSweep(parts.client, parts.keys), RedisDeletions(parts.client, parts.keys)
    documents = RedisDocuments(parts.client, parts.keys)
    return Invalidator(sweep, deletions, documents, embedder, parts.telemetry)


def _feedback(parts: CacheParts, labels: RedisLabels, quality: Callable[[], QualityState]) -> RedisFeedback:
    cache = parts.settings.cache
    kept_ms = round((cache.ttl + cache.stale_ttl) * 1000)
    return RedisFeedback(
        parts.client, parts.keys, parts.indexes, parts.served, labels, parts.telemetry, quality, kept_ms
    )


def _warm_ups(parts: CacheParts, cache: RedisAnswerCache, embedder: Embedder, answering: _Answering) -> WarmUps:
    log_questions = parts.settings.server.log_questions
    telemetry = WarmUpTelemetry(parts.metrics, parts.counters, log_questions=log_questions)
    warmer = CacheWarmer(cache, embedder, answering.keys, answering.fresh(telemetry), parts.telemetry)
    jobs = RedisWarmUpJobs(parts.client, parts.keys, parts.worker)
    return WarmUps(jobs, warmer, parts.telemetry, parts.settings.cache.warm_concurrency, parts.pace)


def _answer_cache(parts: CacheParts) -> RedisAnswerCache:
    cache = parts.settings.cache
    return RedisAnswerCache(
        parts.client,
        parts.keys,
        parts.indexes,
        parts.counters,
        ttl_ms=round(cache.ttl * 1000),
        stale_ms=round(cache.stale_ttl * 1000),
        max_size=parts.max_size,
        tenant_share=cache.tenant_share,
        release=__version__,
        patience=parts.settings.redis.request_budget,
        on_evicted=parts.metrics.cache_evicted,
        near=parts.near,
        limits=parts.limits,
    )


def _grounding(template: PromptTemplate, settings: Settings, reranking: str) -> str:
    """The settings and the re-ranker that an answer depends on. Answers under others are not shared."""
    retrieval = settings.retrieval
    facts = (template.scope, retrieval.retrieval_relevance_floor, retrieval.retrieval_neighbours)
    return " ".join(map(str, (*facts, retrieval.retrieval_nothing_relevant, *([reranking] if reranking else ()))))


def _keeper(parts: CacheParts) -> IndexKeeper:
    lease = RedisLeaderLease(parts.client, parts.keys.janitor, parts.worker)
    return IndexKeeper(parts.client, parts.indexes, lease, pace=parts.pace)


def _limits(settings: Settings) -> CacheLimits:
    cache, embedder = settings.cache, settings.embedder.embedder
    return CacheLimits(
        cache.enabled, cache.max_size, cache.similarity_threshold, cache.ttl, embedder, cache.vector_type
    )


def _quality_settings(settings: Settings, comparator: Comparator, verifier: Verifier | None) -> QualitySettings:
    cache = settings.cache
    versions = Versions("", verifier.digest if verifier else "", f"{comparator.name}-{comparator.version}")
    prior = prior_at(cache.verifier_path) if cache.verifier_path is not None and verifier is not None else None
    return QualitySettings(
        PolicyName(cache.policy),
        cache.similarity_threshold,
        cache.max_error_rate,
        versions,
        comparator.assumed,
        prior,
        comparator.shown,
        __version__,
    )


def prior_at(verifier_path: str) -> Prior | None:
    """Returns the prior of a verifier, if it has one. Raises `SettingsError` if its file is damaged."""
    found = prior_of(verifier_path)
    try:
        return read_prior(found) if found is not None else None
    except ValueError as error:
        raise SettingsError(f"{SETTING}: cannot read {PRIOR} in {verifier_path}: {error}") from error


def _quality_keeper(parts: CacheParts, view: QualityView, embedder: Embedder) -> QualityKeeper:
    store = RedisQuality(parts.client, parts.keys, parts.worker)
    lease = RedisLeaderLease(parts.client, parts.keys.quality_lease, parts.worker)
    labels = RedisLabels(parts.client, parts.keys)

    async def versions() -> Versions:
        """The last known embedder's while it cannot be asked. The fleet may put another verifier in use."""
        known = view.settings.versions
        with suppress(EmbeddingUnavailable):
            known = replace(known, embedder=(await embedder.identity()).fingerprint)
        return replace(known, verifier=parts.verifier.digest if parts.verifier else "")

    return QualityKeeper(view, store, labels, lease, parts.telemetry, versions, parts.quality_changed)


def _languages(embedder: EmbedderSettings) -> Languages:
    """From EMBED_LANGUAGES, else by the model's name; English for unknown models."""
    codes = embedder.language_codes
    if codes is not None:
        return Languages(codes or None)
    return languages_of(embedder.embed_model) if embedder.embedder == "ollama" else ONLY_ENGLISH


def _policy(settings: Settings) -> CachePolicy:
    cache = settings.cache
    return CachePolicy(
        threshold=cache.similarity_threshold,
        revalidate=min(cache.stale_while_revalidate, cache.stale_ttl),
        stale=cache.stale_ttl,
        languages=_languages(settings.embedder),
        follow_ups=cache.follow_ups,
    )
