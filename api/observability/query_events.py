"""Who counts and logs what happens to queries: Prometheus for this worker, counters in Redis for the fleet, the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from api.errors import EmbeddingUnavailable, RagherdError, StoreUnavailable, UpstreamError
from api.model import CacheStatus, Usage
from api.observability.http_middleware import CLIENT_CLOSED_REQUEST
from api.observability.metric_labels import Stage
from api.observability.metrics import Metrics
from api.query.answered import Answered, RefreshOutcome, Stages
from api.query.candidates import Candidate
from api.query.grounding import GroundingOutcome
from api.query.question import Query


class FleetCounters(Protocol):
    """Counters that every worker adds to."""

    def add(self, name: str, count: int = 1) -> None: ...


class QueryEvents:
    """A `QueryObserver`. The question's text is logged only where a setting says so."""

    def __init__(self, metrics: Metrics, counters: FleetCounters, *, log_questions: bool) -> None:
        self._metrics = metrics
        self._counters = counters
        self._log_questions = log_questions
        self._log = structlog.get_logger("ragherd.query")
        self.requests = 0

    def answered(self, query: Query, answered: Answered) -> None:
        """An answer went out."""
        self.requests += 1
        kind = answered.match.kind if answered.match else None
        self._metrics.query_answered(answered.status, kind, _seconds(answered.stages))
        if answered.status is CacheStatus.HIT and kind is not None:
            self._counters.add(f"{kind}_hits")
            self._metrics.cache_looked_up(kind)
        elif answered.status is CacheStatus.STALE:
            self._counters.add("stale_hits")
            self._metrics.cache_looked_up("stale")
        elif answered.status is CacheStatus.COALESCED:
            self._counters.add("coalesced")
        self._log.info("query", **self._facts(query), cache=answered.status, kind=kind, ms=_ms(answered.stages.total))

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """The language model answered, for however many callers, and the cache took it or not."""
        self._metrics.generated(usage)
        if stored:
            self._metrics.cache_stored()

    def missed(self) -> None:
        """The cache was asked in vain."""
        self._counters.add("misses")
        self._metrics.cache_looked_up("miss")

    def refused(self, query: Query, error: RagherdError) -> None:
        """A query ended without an answer."""
        self.requests += 1
        self._metrics.query_failed()
        self._log.warning("query_failed", **self._facts(query), status=error.status, error=error.slug, **error.members)

    def left(self, query: Query) -> None:
        """The caller left before the answer was there."""
        self.requests += 1
        self._metrics.query_left()
        self._log.info("query_left", **self._facts(query), status=CLIENT_CLOSED_REQUEST)

    def store_failed(self, error: StoreUnavailable) -> None:
        """The cache took no part in an answer."""
        self._metrics.cache_looked_up("unavailable")
        self._log.debug("cache_unavailable", error=str(error))

    def store_late(self, error: StoreUnavailable) -> None:
        """The storing of an answer outlived the time that a question has for it, and goes on: counted when it ends."""
        self._log.debug("cache_store_late", error=str(error))

    def stored_late(self) -> None:
        """Such an answer was stored after all."""
        self._metrics.cache_stored()

    def embedding_failed(self, error: EmbeddingUnavailable) -> None:
        """The semantic tier took no part in an answer."""
        self._metrics.cache_looked_up("unavailable")
        self._log.warning("embedding_unavailable", error=str(error))

    def upstream_failed(self, error: UpstreamError) -> None:
        """A call to Ollama failed."""
        self._metrics.upstream_failed(error.fault)

    def failed_over(self, backend: str, error: UpstreamError) -> None:
        """A call left a backend for another; its client knows nothing of it."""
        self._metrics.failed_over(backend, error.fault)
        self._log.warning("failed_over", backend=backend, fault=error.fault, error=str(error))

    def cited(self, sources: int, removed: int) -> None:
        """A grounded answer is complete."""
        if removed:
            self._metrics.citations_removed(removed)
            self._log.info("citations_removed", sources=sources, removed=removed)

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """The knowledge base was searched for an answer."""
        self._metrics.grounded(outcome)

    def considered(self, candidates: Sequence[Candidate]) -> None:
        """The nearest questions were looked at; those that a guard objected to are counted."""
        objections = [(one, one.objection) for one in candidates if one.objection is not None]
        self._counters.add("guard_rejections", len(objections))
        for candidate, objection in objections:
            self._metrics.guard_rejected(objection.guard)
            similarity = round(candidate.match.similarity, 4)
            self._log.debug("guard_rejected", guard=objection.guard, detail=objection.detail, similarity=similarity)

    def language_unknown(self) -> None:
        """A question was not compared by meaning, for the embedder does not know its language."""
        self._metrics.language_unknown()

    def refreshing(self, outcome: RefreshOutcome) -> None:
        """An expired answer was served, and this became of its refreshing."""
        self._metrics.refreshed(outcome)

    def _facts(self, query: Query) -> dict[str, Any]:
        facts: dict[str, Any] = {"tenant": query.tenant, "model": query.model}
        if self._log_questions:
            facts["question"] = query.question
        return facts


def _seconds(stages: Stages) -> dict[Stage, float]:
    """The stages that were needed."""
    known: dict[Stage, float] = {
        "total": stages.total,
        "embed": stages.embed,
        "cache": stages.cache,
        "retrieve": stages.retrieve,
        "generate": stages.generate,
    }
    return {stage: seconds for stage, seconds in known.items() if seconds}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
