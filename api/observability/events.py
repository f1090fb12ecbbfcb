"""Who counts and logs what happens to queries: Prometheus for this worker, counters in Redis for the fleet, the log.

Who counts and logs what operators do to the cache: Prometheus, counters in Redis for the fleet, the log.

The flow of a warm-up as its observer sees it: nothing is counted as a user's, and a lost Redis is not overlooked.

Who counts and logs what happens to documents.

Counts what fails in Redis, and logs when it is lost and found, and what is to be said of how it is set up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import structlog
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError

from api.errors import EmbeddingUnavailable, RagherdError, RerankingUnavailable, StoreUnavailable, UpstreamError
from api.observability.metric_names import Stage
from api.observability.metrics import Metrics
from api.ports.cache import Store, StoreWarning, Swept
from api.query.answer_events import AnswerFinished, RefreshOutcome
from api.query.candidates import Candidate
from api.query.grounding import GroundingOutcome
from api.query.invalidate import Invalidation
from api.query.question import Query, Timings
from api.redis_store.connections import SentinelsRefuse
from api.redis_store.diagnostics import ADVICE, WITHOUT_SEARCH
from api.redis_store.health_gated import RedisHealthEvents
from api.values import CacheStatus, Usage

CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that left before its response."""


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

    def answered(self, query: Query, answered: AnswerFinished) -> None:
        """An answer went out."""
        self.requests += 1
        kind = answered.match.kind if answered.match else None
        self._metrics.query_answered(answered.status, kind, _seconds(answered.timings))
        if answered.status is CacheStatus.HIT and kind is not None:
            self._counters.add(f"{kind}_hits")
            self._metrics.cache_looked_up(kind)
        elif answered.status is CacheStatus.STALE:
            self._counters.add("stale_hits")
            self._metrics.cache_looked_up("stale")
        elif answered.status is CacheStatus.COALESCED:
            self._counters.add("coalesced")
        self._log.info("query", **self._facts(query), cache=answered.status, kind=kind, ms=_ms(answered.timings.total))

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


def _seconds(timings: Timings) -> dict[Stage, float]:
    """The stages that were needed."""
    known: dict[Stage, float] = {
        "total": timings.total,
        "embed": timings.embed,
        "cache": timings.cache,
        "retrieve": timings.retrieve,
        "generate": timings.generate,
    }
    return {stage: seconds for stage, seconds in known.items() if seconds}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class CacheEvents:
    """An `InvalidationEvents` and a `WarmUpEvents`. A question's text is not logged: it may be private."""

    def __init__(self, metrics: Metrics, counters: FleetCounters) -> None:
        self._metrics = metrics
        self._counters = counters
        self._log = structlog.get_logger("ragherd.cache")

    def invalidated(self, asked: Invalidation, swept: Swept) -> None:
        """Entries were deleted."""
        self._counters.add("invalidations", swept.deleted)
        self._metrics.cache_invalidated(asked.kind, swept.deleted)
        facts = {"entry": asked.entry, "source": asked.source, "tenant": asked.tenant, "model": asked.model}
        given = {name: value for name, value in facts.items() if value is not None}
        self._log.warning("cache_invalidated", by=asked.kind, matched=swept.matched, deleted=swept.deleted, **given)

    def stored_ahead(self) -> None:
        """An answer was stored before anybody asked for it."""
        self._metrics.cache_stored()

    def warm_up_taken(self, job: str) -> None:
        """This worker goes on with a warm-up."""
        self._log.info("cache_warm_up", job=job)

    def warm_up_failed(self, job: str, error: str) -> None:
        """A question of a warm-up has failed for good."""
        self._log.warning("cache_warm_up_question_failed", job=job, error=error)


class WarmingEvents(QueryEvents):
    """A `QueryObserver` and a `GroundingEvents`."""

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """Not counted: nobody asked."""

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """Not counted either."""

    def store_failed(self, error: StoreUnavailable) -> None:
        """A user's answer does without the cache; a warm-up is for nothing but the cache, and tries again."""
        raise error

    def store_late(self, error: StoreUnavailable) -> None:
        """The same: it finds the answer stored then."""
        raise error


class KnowledgeEvents:
    """An `IngestionEvents`, an `OutdatingEvents` and a `RerankingEvents`. A document's text is not logged."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("ragherd.knowledge")

    def document_stored(self, chunks: int) -> None:
        """A revision serves."""
        self._metrics.document_stored()
        self._log.info("document_stored", chunks=chunks)

    def document_failed(self, document: str, error: str) -> None:
        """A document that was accepted can not be stored."""
        self._metrics.document_failed()
        self._log.warning("document_failed", document=document, error=error)

    def document_delayed(self, document: str, reason: str) -> None:
        """The embedder fails: the document is put off for the first time in a row."""
        self._log.warning("document_delayed", document=document, reason=reason)

    def chunk_not_embedded(self, document: str, chunk: int, reason: str) -> None:
        """The embedder cannot embed a text."""
        self._metrics.chunk_not_embedded()
        self._log.warning("chunk_not_embedded", document=document, chunk=chunk, reason=reason)

    def chunks_embedded(self, count: int) -> None:
        """Chunks were written."""
        self._metrics.chunks_embedded(count)

    def embeddings_removed(self, embedder: str, chunks: int) -> None:
        """Chunks of an embedder that nobody uses any more are gone."""
        self._log.info("embeddings_removed", embedder=embedder, chunks=chunks)

    def answers_outdated(self, reason: Literal["changed", "affected"], count: int) -> None:
        """The cache was told of a change."""
        if count:
            self._metrics.answers_outdated(reason, count)
            self._log.info("answers_outdated", reason=reason, count=count)

    def reranked(self, seconds: float) -> None:
        """A question's passages were put in the re-ranker's order."""
        self._metrics.reranked("reranked", seconds)

    def reranking_failed(self, error: RerankingUnavailable, seconds: float) -> None:
        """They stay as they were found."""
        self._metrics.reranked("failed", seconds)
        self._log.warning("reranking_unavailable", error=str(error))


REASONS_TOLD: Final = 5
"""Lines that one outage may take."""
URLS: Final[dict[Store, str]] = {"main": "REDIS_URL", "breaker": "BREAKER_REDIS_URL"}


class RedisEvents(RedisHealthEvents):
    """One line when Redis, or a shard of it, is lost, and one when it is back.

    One more for each new reason that it is not found again for; in between only the counter moves.

    What is not of the main Redis is counted as `breaker_...`.
    """

    def __init__(self, metrics: Metrics, store: Store = "main", shard: str = "") -> None:
        self._metrics = metrics
        self._store: Store = store
        self._told: set[str] = set()
        log = structlog.get_logger("ragherd.redis").bind(setting=URLS[store])
        self._log = log.bind(shard=shard) if shard else log

    def failed(self, operation: str, error: BaseException) -> None:
        """An operation failed."""
        own = self._store == "main" or operation.startswith(("breaker", "bulkhead"))
        self._metrics.redis_failed(operation if own else f"breaker_{operation}")
        self._log.debug("redis_failed", operation=operation, error=_text(error))

    def lost(self, operation: str, error: BaseException) -> None:
        """Answers go on without what it holds."""
        text = _text(error)
        # Many commands fail at once, in as many words: after the first, what the watcher hears is the reason.
        is_new = text not in self._told and len(self._told) < REASONS_TOLD
        if is_new and (not self._told or operation in {"ping", "recovery"}):
            self._told.add(text)
            self._log.warning("redis_lost", operation=operation, error=text, **_advice(error))

    def found(self) -> None:
        """The shared memory is there."""
        self._told.clear()
        self._log.info("redis_found")

    def mismatched(self, message: str) -> None:
        """The URL is of another kind than the Redis."""
        self._log.error("redis_url_mismatch", message=message)

    def warned(self, warning: StoreWarning, begins: bool) -> None:
        """See `checkup.Heard`."""
        if not begins:
            self._log.info("redis_warning_over", warning=warning.name)
        elif warning.name == WITHOUT_SEARCH:
            self._log.error("redis_without_search", message=warning.advice)
        else:
            self._log.warning("redis_warning", warning=warning.name, message=warning.advice)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _advice(error: BaseException) -> dict[str, str]:
    """What to do, where that is known from the error."""
    if isinstance(error, ReadOnlyError):
        return {"message": ADVICE["read_only"]}
    if isinstance(error, SentinelsRefuse):
        return {"message": "The Sentinels do not tell: see REDIS_SENTINEL_PASSWORD and REDIS_SENTINEL_USERNAME."}
    if isinstance(error, NoPermissionError):
        return {"message": "Its user may not do all that is needed: `ragherd redis-acl` prints what is."}
    if isinstance(error, AuthenticationError):
        return {"message": "Redis refuses the user or the password of the URL."}
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return {"message": "Its certificate is not trusted, or is for another name: see REDIS_CA_FILE."}
    if "CERTIFICATE_REQUIRED" in str(error) or "ALERT" in str(error):
        return {"message": "The server refuses this worker's certificate: see REDIS_CERT_FILE."}
    return {}
