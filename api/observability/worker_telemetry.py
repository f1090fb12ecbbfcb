"""Counts and logs the events of one worker: Prometheus metrics, counters of the fleet in Redis, and the log."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal

import structlog

from api.errors import (
    EmbeddingUnavailable,
    RagherdError,
    RerankingUnavailable,
    StoreUnavailable,
    UpstreamError,
    VerifierUnavailable,
)
from api.observability.history_figures import BOUNDS, MinuteCounts, VariantCounts
from api.observability.metric_names import FlightEvent, QuarantineChange, Stage
from api.observability.metrics import Metrics
from api.ollama.failures import without_words
from api.ports.answer_cache import Invalidation, Swept, Vote, Voted
from api.ports.answer_quality import LabelSource, PolicyDecision, QualityEvent, Verdict
from api.ports.experiment import Variant
from api.ports.question import AnswerFinished, Query, Timings
from api.ports.telemetry import (
    BulkheadReason,
    GroundedCheckOutcome,
    GroundingOutcome,
    JudgeFailure,
    LabelLoss,
    PrefixChoice,
    RefreshOutcome,
    ShadowOutcome,
    Telemetry,
)
from api.values import CacheStatus, FlightKey, Usage, owner_of

if TYPE_CHECKING:
    from api.redis_store.stores.feedback import ServedAnswers
    from api.redis_store.stores.fleet import CacheCounters
    from api.redis_store.stores.history_store import RecentOutcomes


class WorkerTelemetry(Telemetry):
    """The telemetry of one worker. `log_questions`: the log may contain questions. It never contains documents."""

    def __init__(
        self,
        metrics: Metrics,
        counters: CacheCounters,
        served: ServedAnswers | None = None,
        recent: RecentOutcomes | None = None,
        history: MinuteCounts | None = None,
        *,
        log_questions: bool,
    ) -> None:
        self._note_outcome = recent.note if recent is not None else _not_remembered
        self._note_served = served.note if served is not None else _not_remembered
        self._wake_served = served.wake if served is not None else _not_remembered
        self._metrics = metrics
        self._counters = counters
        self._history = history
        self._variants = VariantCounts(metrics, counters, history)
        self._log_questions = log_questions
        self._queries = structlog.get_logger("ragherd.query")
        self._cache = structlog.get_logger("ragherd.cache")
        self._knowledge = structlog.get_logger("ragherd.knowledge")
        self._bulkheads = structlog.get_logger("ragherd.bulkhead")
        self._flights = structlog.get_logger("ragherd.flights")
        self.requests = 0
        """Queries that ended, with or without an answer."""

    # -- queries ------------------------------------------------------------------------------------------------------

    def answered(
        self, query: Query, answered: AnswerFinished, key: FlightKey | None = None, request_id: str | None = None
    ) -> None:
        """Counts the query, and the tier of the cache that answered it. Notes the answer for feedback."""
        self.requests += 1
        self._note_served((query.request_id if request_id is None else request_id, query, answered, key))
        self._wake_served()
        kind = answered.match.kind if answered.match else None
        is_hit = answered.status is CacheStatus.HIT
        self._metrics.query_answered(answered.status, kind, _stages(answered.timings), kind if is_hit else None)
        if self._history is not None:
            self._history.open[answered.status, kind, bisect_left(BOUNDS, answered.timings.total)] += 1
        if is_hit and kind is not None:
            self._counters.add(f"{kind}_hits")
        elif answered.status is CacheStatus.STALE:
            self._counters.add("stale_hits")
            self._metrics.cache_looked_up("stale")
        elif answered.status is CacheStatus.COALESCED:
            self._counters.add("coalesced")
        similarity = answered.match.similarity if answered.match else None
        question = query.question if self._log_questions else ""
        self._note_outcome((answered.status, kind, similarity, answered.timings.total, answered.model, "", question))
        if query.variant is not None:
            self._variants.answered(query.variant, answered)

    def missed(self) -> None:
        """Counts a cache miss."""
        self._counters.add("misses")
        self._metrics.cache_looked_up("miss")

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """Counts the tokens, once for all callers of a flight."""
        self._metrics.generated(usage)
        if self._history is not None:
            self._history.open["tokens:prompt"] += usage.prompt_tokens
            self._history.open["tokens:completion"] += usage.completion_tokens
        if stored:
            self._metrics.cache_stored()

    def refused(self, query: Query, error: RagherdError) -> None:
        """Counts and logs the error."""
        question = query.question if self._log_questions else ""
        if query.variant is not None:
            self._variants.refused(query.variant)
        self._failed(self._facts(query), query.model, question, error)

    def refused_unread(self, tenant: str, error: RagherdError) -> None:
        """Counts and logs the error. Neither the model nor the question is known."""
        self._failed({"tenant_hash": owner_of(tenant)}, "", "", error)

    def _failed(self, facts: dict[str, Any], model: str, question: str, error: RagherdError) -> None:
        self.requests += 1
        self._metrics.query_failed()
        if self._history is not None:
            self._history.open["queries:error"] += 1
            self._history.open[f"errors:{error.slug}"] += 1
        self._note_outcome(("error", None, None, None, model, error.slug, question))
        self._queries.warning("query_failed", **facts, status=error.status, error=error.slug, **error.members)

    def left(self, query: Query) -> None:
        """Counts the disconnect. The access log has it as status 499."""
        self.requests += 1
        self._metrics.query_left()
        if self._history is not None:
            self._history.open["queries:left"] += 1
        question = query.question if self._log_questions else ""
        self._note_outcome(("left", None, None, None, query.model, "", question))
        if query.variant is not None:
            self._variants.left(query.variant)

    def store_failed(self, error: StoreUnavailable) -> None:
        """Counts a look-up without a result. The loss of Redis is logged once, by `RedisEvents`."""
        self._metrics.cache_looked_up("unavailable")
        self._queries.debug("cache_unavailable", error=str(error))

    def store_late(self, error: StoreUnavailable) -> None:
        """Counts nothing: the outcome is not known yet."""
        self._queries.debug("cache_store_late", error=str(error))

    def stored_late(self) -> None:
        """Counts the stored answer."""
        self._metrics.cache_stored()

    def embedding_failed(self, error: EmbeddingUnavailable) -> None:
        """Counts a look-up without a result, and logs why."""
        self._metrics.cache_looked_up("unavailable")
        self._queries.warning("embedding_unavailable", error=self._said(error))

    def cited(self, sources: int, removed: int) -> None:
        """Counts and logs invalid citations."""
        if removed:
            self._metrics.citations_removed(removed)
            self._queries.info("citations_removed", sources=sources, removed=removed)

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """Counts the search by its outcome."""
        self._metrics.grounded(outcome)

    def grounded_checked(self, outcome: GroundedCheckOutcome) -> None:
        """Counts the check by its outcome."""
        self._metrics.grounded_checked(outcome)

    def guard_rejected(self, guard: str, detail: str, similarity: float) -> None:
        """Counts the rejection by guard."""
        self._counters.add("guard_rejections")
        self._metrics.guard_rejected(guard)
        words = {"detail": detail} if self._log_questions else {}
        self._queries.debug("guard_rejected", guard=guard, similarity=round(similarity, 4), **words)

    def policy_decided(self, decision: PolicyDecision) -> None:
        """Counts the decision by policy and outcome."""
        self._metrics.policy_decided(decision.policy, decision.outcome)

    def quality_event(self, event: QualityEvent) -> None:
        """Counts and logs it. Only the worker that decided it does so."""
        self._metrics.quality_changed(event.change)
        rate = event.rate
        facts = {"level": event.level, "reason": event.reason, "samples": rate.samples}
        facts |= {"tenant_hash": owner_of(event.tenant)} if event.tenant else {}
        error = {"estimate": round(rate.estimate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4)}
        log = self._cache.warning if event.change in ("tightened", "forgot") else self._cache.info
        log(f"cache_{event.change}", **facts, **error)

    def language_unknown(self) -> None:
        """Counts the question."""
        self._metrics.language_unknown()

    def compared(self, stage: str, verdict: Verdict) -> None:
        """Counts the comparison by stage and verdict."""
        self._metrics.compared(stage, verdict)

    def judge_failed(self, reason: JudgeFailure) -> None:
        """Counts and logs the failure."""
        self._metrics.judge_failed(reason)
        self._queries.warning("judge_failed", reason=reason)

    def refreshing(self, outcome: RefreshOutcome) -> None:
        """Counts the refresh by its outcome."""
        self._metrics.refreshed(outcome)

    def labelled(self, source: LabelSource, verdict: Verdict, variant: Variant | None = None) -> None:
        """Counts the label. For a variant only those of shadow calls count, which are a random sample of its hits."""
        self._metrics.labelled(source, verdict.value)
        if variant is not None and source == "shadow":
            self._variants.labelled(variant, verdict)

    def label_dropped(self, reason: LabelLoss) -> None:
        """Counts the loss by reason."""
        self._metrics.label_dropped(reason)

    def shadow_called(self, outcome: ShadowOutcome) -> None:
        """Counts the call by its outcome."""
        self._metrics.shadow_called(outcome)

    def _said(self, error: object) -> str:
        """Returns an error for the log: what Ollama said only if texts may be logged."""
        return str(error) if self._log_questions else without_words(str(error))

    def _facts(self, query: Query) -> dict[str, Any]:
        facts: dict[str, Any] = {"tenant_hash": owner_of(query.tenant), "model": query.model}
        if query.variant is not None:
            facts["variant"] = query.variant.label
        if self._log_questions:
            facts["question"] = query.question
        return facts

    def tool_called(self, tool: str, outcome: str) -> None:
        """Counts the call by tool and outcome."""
        self._metrics.tool_called(tool, outcome)

    # -- calls to Ollama ----------------------------------------------------------------------------------------------

    def upstream_failed(self, error: UpstreamError) -> None:
        """Counts the failure by its kind."""
        self._metrics.upstream_failed(error.fault)

    def failed_over(self, backend: str, error: UpstreamError) -> None:
        """Counts and logs the failover."""
        self._metrics.failed_over(backend, error.fault)
        self._queries.warning("failed_over", backend=backend, fault=error.fault, error=self._said(error))

    def overdue(self, backend: str, count: int) -> None:
        """Shows the kept permits."""
        self._metrics.overdue(backend, count)

    def backend_hangs(self, backend: str) -> None:
        """Counts and logs the hang."""
        self._metrics.backend_hangs(backend)
        self._queries.warning("backend_hangs", backend=backend)

    def prefix_chosen(self, reason: PrefixChoice, matched: int, size: int) -> None:
        """Counts the choice and the bytes."""
        self._metrics.prefix_chosen(reason, matched, size)

    def bulkhead_admitted(self, bulkhead: str, priority: str, seconds: float) -> None:
        """Observes the wait."""
        self._metrics.bulkhead_admitted(bulkhead, priority, seconds)

    def bulkhead_rejected(self, bulkhead: str, reason: BulkheadReason, priority: str) -> None:
        """Counts the rejection."""
        self._metrics.bulkhead_rejected(bulkhead, reason, priority)
        if self._history is not None:
            self._history.open[f"rejected:{reason}"] += 1

    def bulkhead_share_reached(self, bulkhead: str) -> None:
        """Counts the call."""
        self._metrics.bulkhead_share_reached(bulkhead)

    def bulkhead_store_lost(self, bulkhead: str, limit: int) -> None:
        """Logs one line per outage."""
        self._bulkheads.warning("bulkhead_local", bulkhead=bulkhead, limit=limit)

    def bulkhead_store_found(self, bulkhead: str) -> None:
        """Logs the end of the outage."""
        self._bulkheads.info("bulkhead_shared", bulkhead=bulkhead)

    def flight_handed_over(self) -> None:
        """Counts and logs it."""
        self._flight("handed_over")

    def flight_alone(self) -> None:
        """Counts and logs it."""
        self._flight("alone")

    def flight_fenced(self) -> None:
        """Counts and logs it."""
        self._flight("fenced")

    def _flight(self, event: FlightEvent) -> None:
        self._metrics.flight(event)
        self._flights.warning("single_flight", event_kind=event)

    # -- operators ----------------------------------------------------------------------------------------------------

    def invalidated(self, asked: Invalidation, swept: Swept) -> None:
        """Counts the deleted entries. The log does not contain the question: it may be private."""
        self._counters.add("invalidations", swept.deleted)
        self._metrics.cache_invalidated(asked.kind, swept.deleted)
        # What matched nothing may be anything, such as a question in the wrong place.
        names = ("entry", "source", "model", "release", "since") if swept.matched else ("since",)
        facts = {name: getattr(asked, name) for name in names}
        facts["tenant_hash"] = owner_of(asked.tenant) if asked.tenant is not None else None
        given = {name: value for name, value in facts.items() if value is not None}
        self._cache.warning("cache_invalidated", by=asked.kind, matched=swept.matched, deleted=swept.deleted, **given)

    def voted(self, vote: Vote, voted: Voted) -> None:
        """Counts the vote, each key's once. Logs what it did to the cache, without texts."""
        self._metrics.feedback_received(vote.verdict)
        if voted.former != vote.verdict:
            self._counters.add(f"feedback_{vote.verdict}")
            if voted.former is not None:
                self._counters.add(f"feedback_{voted.former}", -1)
        served = voted.served
        if served.variant:
            self._variants.voted(served, vote.verdict, voted.former)
        facts = {
            "tenant_hash": owner_of(served.tenant),
            "kind": served.status,
            "similarity": served.similarity,
            "by": vote.voter,
        }
        self._queries.info("feedback", verdict=vote.verdict, former=voted.former, judged=vote.request_id, **facts)
        if voted.moved:
            change: QuarantineChange = "quarantined" if vote.verdict == "bad" else "released"
            self._counters.add(change, voted.moved)
            self._metrics.quarantine_changed(change, voted.moved)
            entry = f"{served.scope}:{served.entry}"
            self._cache.warning(f"cache_{change}", entry=entry, entries=voted.moved, judged=vote.request_id, **facts)

    def stored_ahead(self) -> None:
        """Counts the stored answer."""
        self._metrics.cache_stored()

    def warm_up_taken(self, job: str) -> None:
        """Logs which worker has the warm-up."""
        self._cache.info("cache_warm_up", job=job)

    def warm_up_failed(self, job: str, error: str) -> None:
        """Logs the error without the question."""
        self._cache.warning("cache_warm_up_question_failed", job=job, error=self._said(error))

    def verified(self, seconds: float) -> None:
        """Observes the time."""
        self._metrics.verified("scored", seconds)

    def verifying_failed(self, error: VerifierUnavailable, seconds: float) -> None:
        """Observes and logs."""
        self._metrics.verified("failed", seconds)
        self._cache.warning("verifier_unavailable", error=str(error))

    def verifier_changed(self, digest: str) -> None:
        """Logs the new one."""
        self._cache.info("verifier_changed", verifier=digest)

    def verifier_not_changed(self, digest: str, error: str) -> None:
        """Logs the error."""
        self._cache.warning("verifier_not_changed", verifier=digest, error=error)

    # -- documents ----------------------------------------------------------------------------------------------------

    def document_stored(self, chunks: int) -> None:
        """Counts and logs it."""
        self._metrics.document_stored()
        self._knowledge.info("document_stored", chunks=chunks)

    def document_failed(self, document: str, error: str) -> None:
        """Counts and logs it."""
        self._metrics.document_failed()
        self._knowledge.warning("document_failed", document=document, error=self._said(error))

    def document_delayed(self, document: str, reason: str) -> None:
        """Logs the reason."""
        self._knowledge.warning("document_delayed", document=document, reason=self._said(reason))

    def chunks_embedded(self, count: int) -> None:
        """Counts the chunks."""
        self._metrics.chunks_embedded(count)

    def chunk_not_embedded(self, document: str, chunk: int, reason: str) -> None:
        """Counts and logs it."""
        self._metrics.chunk_not_embedded()
        self._knowledge.warning("chunk_not_embedded", document=document, chunk=chunk, reason=self._said(reason))

    def embeddings_removed(self, embedder: str, chunks: int) -> None:
        """Logs it."""
        self._knowledge.info("embeddings_removed", embedder=embedder, chunks=chunks)

    def answers_outdated(self, reason: Literal["changed", "affected"], count: int) -> None:
        """Counts and logs the answers, if there are any."""
        if count:
            self._metrics.answers_outdated(reason, count)
            self._knowledge.info("answers_outdated", reason=reason, count=count)

    def reranked(self, seconds: float) -> None:
        """Observes the duration."""
        self._metrics.reranked("reranked", seconds)

    def reranking_failed(self, error: RerankingUnavailable, seconds: float) -> None:
        """Observes the duration and logs the error."""
        self._metrics.reranked("failed", seconds)
        self._knowledge.warning("reranking_unavailable", error=str(error))


def _not_remembered(*_: object) -> None:
    """Does nothing: nobody judges these answers."""


class WarmUpTelemetry(WorkerTelemetry):
    """The telemetry of warm-ups: users' metrics do not count them, and an unavailable store is an error."""

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """Not counted: no user asked."""

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """Not counted either."""

    def store_failed(self, error: StoreUnavailable) -> None:
        """Raises it: a warm-up without the cache is useless, so it tries again later."""
        try:
            raise error
        finally:
            del error

    def store_late(self, error: StoreUnavailable) -> None:
        """Raises it: the next attempt finds the answer stored."""
        try:
            raise error
        finally:
            del error


def _stages(timings: Timings) -> dict[Stage, float]:
    """The stages that took any time."""
    stages: dict[Stage, float] = {"total": timings.total} if timings.total else {}
    if timings.cache:
        stages["cache"] = timings.cache
    if timings.embed:
        stages["embed"] = timings.embed
    if timings.retrieve:
        stages["retrieve"] = timings.retrieve
    if timings.generate:
        stages["generate"] = timings.generate
    return stages
