"""The service's Prometheus metrics. Each worker has one `Metrics`, made by wiring.

Under gunicorn prometheus_client runs in multiprocess mode: each worker counts in files of PROMETHEUS_MULTIPROC_DIR, and
the scraped process adds them up. Counting is a dictionary look-up and a write to memory; only `exposition` does I/O
that waits. `metric_series.py` has the families of series and writes to them.
"""

from __future__ import annotations

import math
import os
import platform
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from api import __version__
from api.errors import UpstreamFault
from api.observability import metric_names as names
from api.observability.metric_names import (
    ConnectionEnd,
    FlightEvent,
    LookupResult,
    QuarantineChange,
    RerankingOutcome,
    SpanOutcome,
    Stage,
    VerifierOutcome,
)
from api.observability.metric_series import BreakerFamilies, CounterSlots, HistogramSlots, MetricFamily, adding
from api.observability.worker_files import WorkerFilesCollector
from api.ports.answer_cache import FeedbackVerdict, StoreMemory, StoreWarning
from api.ports.answer_quality import FalseHitRate, LabelSource, QualityState, Verdict
from api.ports.telemetry import BulkheadReason, LabelLoss, RefreshOutcome, ShadowOutcome
from api.values import CacheKind, CacheStatus, Priority, Usage

VARIANTS: Final = 20
"""Variants of experiments that have series of their own in the life of a worker."""
OTHER_VARIANTS: Final = ("other", "other")


@dataclass(frozen=True, slots=True)
class OllamaGrowth:
    """One backend's generations between two measurements, by phase and direction; the speed is a mean."""

    generations: int
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]
    tokens_per_second: float


class Metrics:
    """One worker's metrics. A series without labels exists from the start, one with labels from its first use."""

    def __init__(self, registry: CollectorRegistry | None = None, version: str = __version__) -> None:
        self._registry = registry or CollectorRegistry()
        self._families = {spec: MetricFamily(spec, self._registry) for spec in names.ALL_METRICS}
        self.breakers = BreakerFamilies(self._families)
        self._add = adding()
        self._requests = HistogramSlots(self._families[names.HTTP_REQUEST_DURATION])
        self._in_flight = self._families[names.HTTP_REQUESTS_IN_FLIGHT][()]
        self.running = 0
        """Requests in flight."""
        self._in_flight.set_function(lambda: self.running)
        self._queries = self._families[names.QUERIES]
        self._answers = CounterSlots(self._queries)
        self._lookups = CounterSlots(self._families[names.CACHE_LOOKUPS])
        self._tokens = CounterSlots(self._families[names.GENERATION_TOKENS])
        self._stores = CounterSlots(self._families[names.CACHE_STORES])
        self._groundings = CounterSlots(self._families[names.GROUNDINGS])
        self._stages = HistogramSlots(self._families[names.QUERY_STAGE_DURATION])
        self._lag = self._families[names.EVENT_LOOP_LAG][()]
        self._variants: set[tuple[str, str]] = set()
        """Experiments and variants that have series."""
        self._rates: dict[str, FalseHitRate] = {}
        """Of each kind that was ever known: its series must not keep an old value."""
        self._families[names.BUILD_INFO][version, platform.python_version()].set(1)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        for reason in get_args(ConnectionEnd):
            self._families[names.CONNECTIONS_CLOSED].begin(reason)
        for result in get_args(LookupResult):
            self._families[names.CACHE_LOOKUPS].begin(result)
        for fault in UpstreamFault:
            self._families[names.UPSTREAM_FAULTS].begin(fault.value)
        for kind in ("exact", "semantic"):
            self._queries.begin(CacheStatus.HIT.value, kind)
        for outcome in get_args(RefreshOutcome):
            self._families[names.CACHE_REFRESHES].begin(outcome)
        for verdict in get_args(FeedbackVerdict):
            self._families[names.FEEDBACK].begin(verdict)
        for change in get_args(QuarantineChange):
            self._families[names.CACHE_QUARANTINES].begin(change)
        for source, verdict in product(get_args(LabelSource), Verdict):
            self._families[names.CACHE_LABELS].begin(source, verdict.value)
        for reason in get_args(LabelLoss):
            self._families[names.CACHE_LABELS_DROPPED].begin(reason)
        for call in get_args(ShadowOutcome):
            self._families[names.CACHE_SHADOW_CALLS].begin(call)
        for event in get_args(FlightEvent):
            self._families[names.SINGLE_FLIGHT_EVENTS].begin(event)
        for status in (CacheStatus.COALESCED.value, CacheStatus.MISS.value, CacheStatus.BYPASS.value, "error", "left"):
            self._queries.begin(status, "none")

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observes a request that ended or was abandoned. `route` is the route's template, never the path."""
        self.running -= 1
        total, buckets, bounds = self._requests[method, route, status]
        self._add(((total, seconds), (buckets[bisect_left(bounds, seconds)], 1)))

    def loop_was_late(self, seconds: float) -> None:
        """Observes the event loop's delay, ten times a second. Shows the requests in flight, at no cost for each."""
        self._lag.observe(seconds)
        self._in_flight.set(self.running)

    def tasks_are(self, count: int) -> None:
        """Sets how many tasks of the event loop have not ended."""
        self._families[names.EVENT_LOOP_TASKS][()].set(count)

    def connections_are(self, counts: Mapping[str, int]) -> None:
        """Sets this worker's connections by state. Called periodically rather than at every change."""
        for state, count in counts.items():
            self._families[names.CONNECTIONS][(state,)].set(count)

    def connection_closed(self, reason: ConnectionEnd) -> None:
        """Counts a connection that the worker closed."""
        self._families[names.CONNECTIONS_CLOSED][(reason,)].inc()

    # -- queries ------------------------------------------------------------------------------------------------------

    def query_answered(
        self,
        status: CacheStatus,
        kind: CacheKind | None,
        timings: Mapping[Stage, float],
        looked_up: LookupResult | None = None,
    ) -> None:
        """Counts an answer. `timings`: the seconds spent in each stage that ran. `looked_up`: the look-up's result."""
        additions = [(self._answers[status, kind or "none"], 1.0)]
        if looked_up is not None:
            additions.append((self._lookups[(looked_up,)], 1.0))
        for stage, seconds in timings.items():
            total, buckets, bounds = self._stages[(stage,)]
            additions += ((total, seconds), (buckets[bisect_left(bounds, seconds)], 1.0))
        self._add(additions)

    def query_failed(self) -> None:
        """Counts a query that failed."""
        self._queries["error", "none"].inc()

    def query_left(self) -> None:
        """Counts a caller that disconnected."""
        self._queries["left", "none"].inc()

    def _variant(self, experiment: str, variant: str) -> tuple[str, str]:
        """Returns the labels of a variant; `other` beyond `VARIANTS`, so that the number of series is bounded."""
        labels = (experiment, variant)
        if labels not in self._variants:
            if len(self._variants) >= VARIANTS:
                return OTHER_VARIANTS
            self._variants.add(labels)
        return labels

    def variant_answered(
        self, experiment: str, variant: str, status: CacheStatus, kind: CacheKind | None, seconds: float
    ) -> None:
        """Counts an answer of a variant, and observes its time."""
        labels = self._variant(experiment, variant)
        self._families[names.VARIANT_QUERIES][(*labels, status.value, kind or "none")].inc()
        self._families[names.VARIANT_QUERY_DURATION][labels].observe(seconds)

    def variant_query_ended(self, experiment: str, variant: str, status: Literal["error", "left"]) -> None:
        """Counts a query of a variant that got no answer."""
        self._families[names.VARIANT_QUERIES][(*self._variant(experiment, variant), status, "none")].inc()

    def variant_voted(self, experiment: str, variant: str, verdict: FeedbackVerdict) -> None:
        """Counts a vote on an answer of a variant."""
        self._families[names.VARIANT_FEEDBACK][(*self._variant(experiment, variant), verdict)].inc()

    def variant_labelled(self, experiment: str, variant: str, verdict: str) -> None:
        """Counts a label of a variant's answer."""
        self._families[names.VARIANT_LABELS][(*self._variant(experiment, variant), verdict)].inc()

    def generated(self, usage: Usage) -> None:
        """Counts the tokens of a generation."""
        prompt, completion = self._tokens[("prompt",)], self._tokens[("completion",)]
        self._add(((prompt, usage.prompt_tokens), (completion, usage.completion_tokens)))

    def cache_looked_up(self, result: LookupResult) -> None:
        """Counts a look-up in the semantic cache."""
        self._add(((self._lookups[(result,)], 1.0),))

    def cache_stored(self) -> None:
        """Counts a stored answer."""
        self._add(((self._stores[()], 1.0),))

    def near_cache_is(self, hits: int, size: int, *, tracking: bool) -> None:
        """Counts the hits since the last call, and sets the bytes of the copies and whether they can be used."""
        self._families[names.CACHE_NEAR_HITS][()].inc(hits)
        self._families[names.CACHE_NEAR_BYTES][()].set(size)
        self._families[names.CACHE_NEAR_WORKERS][()].set(tracking)

    def cache_evicted(self, count: int) -> None:
        """Counts evicted entries."""
        self._families[names.CACHE_EVICTIONS][()].inc(count)

    def quality_is(self, state: QualityState) -> None:
        """Sets what the fleet knows about its error. Without labels the share is not a number."""
        self._rates = {**dict.fromkeys(self._rates, FalseHitRate()), "all": state.rate, **state.by_kind}
        for kind, rate in self._rates.items():
            known = rate.samples > 0
            for bound, value in (("estimate", rate.estimate), ("low", rate.low), ("high", rate.high)):
                self._families[names.CACHE_FALSE_HIT_RATE][kind, bound].set(value if known else math.nan)
            self._families[names.CACHE_FALSE_HIT_SAMPLES][(kind,)].set(rate.samples)
        self._families[names.CACHE_TARGET_ERROR][()].set(state.target_error)
        self._families[names.CACHE_TIGHTENED][()].set(state.level)

    def policy_decided(self, policy: str, outcome: str) -> None:
        """Counts a decision of a policy."""
        self._families[names.CACHE_DECISIONS][policy, outcome].inc()

    def tool_called(self, tool: str, outcome: str) -> None:
        """Counts a call of a tool."""
        self._families[names.MCP_TOOL_CALLS][tool, outcome].inc()

    def quality_changed(self, change: str) -> None:
        """Counts a change of what the fleet serves."""
        self._families[names.CACHE_QUALITY_CHANGES][(change,)].inc()

    def feedback_received(self, verdict: FeedbackVerdict) -> None:
        """Counts a vote."""
        self._families[names.FEEDBACK][(verdict,)].inc()

    def feedback_left_out(self, count: int) -> None:
        """Counts answers that cannot be judged."""
        self._families[names.FEEDBACK_LEFT_OUT][()].inc(count)

    def undecryptable(self) -> None:
        """Counts a text in Redis that cannot be decrypted."""
        self._families[names.UNDECRYPTABLE][()].inc()

    def quarantine_changed(self, change: QuarantineChange, count: int) -> None:
        """Counts entries that feedback took out of service or put back."""
        self._families[names.CACHE_QUARANTINES][(change,)].inc(count)

    def guard_rejected(self, guard: str) -> None:
        """Counts a cached answer that a guard rejected."""
        self._families[names.CACHE_GUARD_REJECTIONS][(guard,)].inc()

    def grounded_checked(self, outcome: str) -> None:
        """Counts a comparison of a cached answer's passages."""
        self._families[names.CACHE_GROUNDED_CHECKS][(outcome,)].inc()

    def language_unknown(self) -> None:
        """Counts a question in a language that the embedder does not know."""
        self._families[names.CACHE_LANGUAGE_UNKNOWN][()].inc()

    def refreshed(self, outcome: RefreshOutcome) -> None:
        """Counts the refresh of an expired answer."""
        self._families[names.CACHE_REFRESHES][(outcome,)].inc()

    def labelled(self, source: LabelSource, verdict: str) -> None:
        """Counts a label."""
        self._families[names.CACHE_LABELS][source, verdict].inc()

    def label_dropped(self, reason: LabelLoss) -> None:
        """Counts a label that was not written."""
        self._families[names.CACHE_LABELS_DROPPED][(reason,)].inc()

    def shadow_called(self, outcome: ShadowOutcome) -> None:
        """Counts a shadow call."""
        self._families[names.CACHE_SHADOW_CALLS][(outcome,)].inc()

    def flight(self, event: FlightEvent) -> None:
        """Counts an unusual event of a flight."""
        self._families[names.SINGLE_FLIGHT_EVENTS][(event,)].inc()

    def cache_invalidated(self, kind: str, count: int) -> None:
        """Counts entries that an operator deleted."""
        self._families[names.CACHE_INVALIDATIONS][(kind,)].inc(count)

    def grounded(self, outcome: str) -> None:
        """Counts a search for passages."""
        self._add(((self._groundings[(outcome,)], 1.0),))

    def reranking_known(self) -> None:
        """Starts the re-ranker's series at zero."""
        for outcome in get_args(RerankingOutcome):
            self._families[names.RERANKING_DURATION].begin(outcome)

    def reranked(self, outcome: RerankingOutcome, seconds: float) -> None:
        """Observes a re-ranking."""
        self._families[names.RERANKING_DURATION][(outcome,)].observe(seconds)

    def verifier_known(self) -> None:
        """Starts the verifier's series at zero."""
        for outcome in get_args(VerifierOutcome):
            self._families[names.VERIFIER_DURATION].begin(outcome)

    def verified(self, outcome: VerifierOutcome, seconds: float) -> None:
        """Observes the scoring of candidates."""
        self._families[names.VERIFIER_DURATION][(outcome,)].observe(seconds)

    def tracing_known(self) -> None:
        """Starts the series of spans at zero."""
        for outcome in get_args(SpanOutcome):
            self._families[names.TRACE_SPANS].begin(outcome)

    def spans(self, outcome: SpanOutcome, count: int = 1) -> None:
        """Counts spans of traces. Other threads call it too."""
        self._families[names.TRACE_SPANS][(outcome,)].inc(count)

    def compared(self, stage: str, verdict: str) -> None:
        """Counts a comparison of two answers."""
        self._families[names.ANSWER_COMPARISONS][(stage, verdict)].inc()

    def judge_failed(self, reason: str) -> None:
        """Counts a pair of answers without the judge's verdict."""
        self._families[names.JUDGE_FAILURES][(reason,)].inc()

    def citations_removed(self, count: int) -> None:
        """Counts removed citations."""
        self._families[names.CITATIONS_REMOVED][()].inc(count)

    def document_stored(self) -> None:
        """Counts a document put into service."""
        self._families[names.DOCUMENTS_STORED][()].inc()

    def document_failed(self) -> None:
        """Counts a document that failed."""
        self._families[names.DOCUMENTS_FAILED][()].inc()

    def chunks_embedded(self, count: int) -> None:
        """Counts embedded chunks."""
        self._families[names.CHUNKS_EMBEDDED][()].inc(count)

    def chunk_not_embedded(self) -> None:
        """Counts a chunk that could not be embedded."""
        self._families[names.CHUNKS_NOT_EMBEDDED][()].inc()

    def answers_outdated(self, reason: str, count: int) -> None:
        """Counts cached answers that a change of documents invalidated."""
        self._families[names.ANSWERS_OUTDATED][(reason,)].inc(count)

    def upstream_failed(self, fault: UpstreamFault) -> None:
        """Counts a failed call to Ollama."""
        self._families[names.UPSTREAM_FAULTS][(fault.value,)].inc()

    def failed_over(self, backend: str, fault: UpstreamFault) -> None:
        """Counts a call that moved from `backend` to another."""
        self._families[names.FAILOVERS][backend, fault.value].inc()

    def prefix_chosen(self, reason: str, matched: int, size: int) -> None:
        """Counts a choice by prefix affinity, and the bytes of the prompt that the backend knew or not."""
        self._families[names.PREFIX_CHOICES][(reason,)].inc()
        self._families[names.PREFIX_BYTES][("matched",)].inc(matched)
        self._families[names.PREFIX_BYTES][("new",)].inc(size - matched)

    def retried(self, count: int) -> None:
        """Counts retries."""
        self._families[names.RETRIES][()].inc(count)

    def backend_is(self, backend: str, *, up: bool) -> None:
        """Sets whether the last probe succeeded."""
        self._families[names.BACKEND_UP][(backend,)].set(float(up))

    def backend_drained(self, backend: str, *, drained: bool) -> None:
        """Sets whether an admin has drained a backend."""
        self._families[names.BACKEND_DRAINED][(backend,)].set(float(drained))

    def overdue(self, backend: str, count: int) -> None:
        """Sets the permits of this worker that are kept."""
        self._families[names.OVERDUE_CALLS][(backend,)].set(count)

    def backend_hangs(self, backend: str) -> None:
        """Counts a hang."""
        self._families[names.BACKEND_HANGS][(backend,)].inc()

    def ollama_worked(self, backend: str, grown: OllamaGrowth) -> None:
        """Adds a backend's work since the last measurement."""
        self._families[names.OLLAMA_GENERATIONS][(backend,)].inc(grown.generations)
        for phase, seconds in grown.seconds.items():
            self._families[names.OLLAMA_SECONDS][backend, phase].inc(seconds)
        for direction, tokens in grown.tokens.items():
            self._families[names.OLLAMA_TOKENS][backend, direction].inc(tokens)
        self._families[names.OLLAMA_TOKENS_PER_SECOND][(backend,)].set(grown.tokens_per_second)

    # -- bulkhead -----------------------------------------------------------------------------------------------------

    def bulkhead_known(self, name: str) -> None:
        """Starts a new bulkhead's counters at zero."""
        for reason, priority in product(get_args(BulkheadReason), Priority):
            self._families[names.BULKHEAD_REJECTED].begin(name, reason, priority)
        self._families[names.BULKHEAD_SHARE_REACHED].begin(name)
        self.bulkhead_is(name, in_use=0, waiting=dict.fromkeys(Priority, 0), local=False)

    def bulkhead_is(self, name: str, *, in_use: int, waiting: Mapping[str, int], local: bool) -> None:
        """Sets this worker's part of the bulkhead. Called periodically rather than at every call."""
        self._families[names.BULKHEAD_IN_USE][(name,)].set(in_use)
        for priority, calls in waiting.items():
            self._families[names.BULKHEAD_WAITING][name, priority].set(calls)
        self._families[names.BULKHEAD_STORE_LOCAL][(name,)].set(float(local))

    def bulkhead_admitted(self, name: str, priority: str, seconds: float) -> None:
        """Observes the wait for a permit."""
        self._families[names.BULKHEAD_WAIT][name, priority].observe(seconds)

    def bulkhead_rejected(self, name: str, reason: BulkheadReason, priority: str) -> None:
        """Counts a call that got no permit."""
        self._families[names.BULKHEAD_REJECTED][name, reason, priority].inc()

    def bulkhead_share_reached(self, name: str) -> None:
        """Counts a call that waits because its tenant has its share of the permits."""
        self._families[names.BULKHEAD_SHARE_REACHED][(name,)].inc()

    # -- connections --------------------------------------------------------------------------------------------------

    def pool_is(self, *, active: int, idle: int, waiting: int) -> None:
        """Sets the state of the worker's pool. Called periodically rather than at every request."""
        self._families[names.POOL_CONNECTIONS][("active",)].set(active)
        self._families[names.POOL_CONNECTIONS][("idle",)].set(idle)
        self._families[names.POOL_WAITING][()].set(waiting)

    def pool_opened(self, count: int = 1) -> None:
        """Counts opened connections to Ollama."""
        self._families[names.POOL_OPENED][()].inc(count)

    def pool_request(self, count: int = 1) -> None:
        """Counts requests to Ollama."""
        self._families[names.POOL_REQUESTS][()].inc(count)

    def pool_timeout(self, count: int = 1) -> None:
        """Counts requests that got no connection in time."""
        self._families[names.POOL_TIMEOUTS][()].inc(count)

    def redis_is(self, *, up: bool, breaker_up: bool) -> None:
        """Sets whether this worker reaches Redis, and the Redis of its breakers."""
        self._families[names.REDIS_UP][()].set(float(up))
        self._families[names.BREAKER_REDIS_UP][()].set(float(breaker_up))

    def redis_warnings(self, warnings: Collection[StoreWarning]) -> None:
        """Sets the current warnings about Redis to 1 and earlier ones to 0."""
        now = {(warning.store, warning.name) for warning in warnings}
        family = self._families[names.REDIS_WARNINGS]
        for series in now | set(family):
            family[series].set(float(series in now))

    def redis_memory_is(self, stores: Collection[StoreMemory]) -> None:
        """Sets how much memory each Redis uses, and how many keys it evicted."""
        for memory in stores:
            self._families[names.REDIS_MEMORY][(memory.store,)].set(memory.used)
            self._families[names.REDIS_MEMORY_SHARE][(memory.store,)].set(memory.share)
            self._families[names.REDIS_EVICTED][(memory.store,)].set(memory.evicted)

    def redis_shards_are(self, up: int, known: int) -> None:
        """Sets how many shards of Redis there are, and how many of them this worker reaches."""
        self._families[names.REDIS_SHARDS_UP][()].set(up)
        self._families[names.REDIS_SHARDS][()].set(known)

    def rate_limited(self, limit: str, outcome: str) -> None:
        """Counts a question that a limit refused, or that left little of it."""
        self._families[names.RATE_LIMITED][limit, outcome].inc()

    def key_rejected(self) -> None:
        """Counts a wrong API key."""
        self._families[names.REJECTED_KEYS][()].inc()

    def key_file_changed(self, was_read: bool) -> None:
        """Counts a change of a file with keys."""
        self._families[names.KEY_FILES][("read" if was_read else "broken",)].inc()

    def redis_failed(self, operation: str) -> None:
        """Counts a failed operation on Redis. `operation` is one of a few names, never a key."""
        self._families[names.REDIS_ERRORS][(operation,)].inc()

    def history_written(self) -> None:
        """Counts a minute of the history."""
        self._families[names.HISTORY_MINUTES][()].inc()

    def history_lost(self) -> None:
        """Counts a minute whose counts were dropped."""
        self._families[names.HISTORY_LOST][()].inc()

    def worker_started(self) -> None:
        """Counts this worker."""
        self._families[names.WORKERS_STARTED][()].inc()

    # -- for scrapes --------------------------------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and the content type; in multiprocess mode those of every worker of the pod.

        Reads files, which takes milliseconds: call it in a thread.
        """
        encode, content_type = choose_encoder(accept)
        body: bytes = encode(self._to_expose())
        return body, content_type

    def _to_expose(self) -> CollectorRegistry:
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return self._registry
        every_worker = CollectorRegistry()
        WorkerFilesCollector(every_worker)
        return every_worker
