"""The telemetry interface: events that a worker's components report."""

from __future__ import annotations

from typing import Literal

from api.errors import (
    EmbeddingUnavailable,
    RagherdError,
    RerankingUnavailable,
    StoreUnavailable,
    UpstreamError,
    VerifierUnavailable,
)
from api.ports.answer_cache import Invalidation, Swept, Vote, Voted
from api.ports.answer_quality import LabelSource, PolicyDecision, QualityEvent, Verdict
from api.ports.experiment import Variant
from api.ports.question import AnswerFinished, Query
from api.values import FlightKey, Usage

GroundedCheckOutcome = Literal["agreed", "rejected", "unavailable"]
GroundingOutcome = Literal["grounded", "nothing_relevant", "no_documents", "not_asked", "unavailable"]
"""The result of the search of the knowledge base for an answer."""
RefreshOutcome = Literal["stored", "not_stored", "failed", "elsewhere", "too_many"]
"""The outcome of refreshing an expired answer. `elsewhere`: another worker does it; `too_many`: this one is full."""
JudgeFailure = Literal["unavailable", "invalid"]
"""The reason why the judge gave no verdict: its model did not answer, or not in the form that was asked for."""
BulkheadReason = Literal["queue_full", "deadline", "displaced"]
"""The reason why a call got no permit."""


LabelLoss = Literal["queue_full", "allowance_spent", "store_unavailable", "failed", "stopped"]
"""The reason why a label was not written. `stopped`: the worker ended first."""
ShadowOutcome = Literal[
    "compared",
    "limited",
    "breaker_open",
    "users_waiting",
    "incomplete",
    "failed",
    "queue_full",
    "store_unavailable",
    "stopped",
]
"""The outcome of a shadow call. `limited`: the fleet has made enough in this minute. `incomplete`: the answer was cut
off, or its passages could not be searched.
"""


PrefixChoice = Literal["prefix", "load", "unknown", "unavailable"]
"""The reason why a backend took a call: it knows most of the prompt; another does, but is busier; none knows it; Redis
is down.
"""


class Telemetry:
    """One worker's telemetry. This base does nothing; `observability.worker_telemetry` counts and logs.

    Methods do no blocking I/O and raise nothing. Only a warm-up's telemetry raises a lost Redis.
    """

    # -- queries ------------------------------------------------------------------------------------------------------

    def answered(
        self, query: Query, answered: AnswerFinished, key: FlightKey | None = None, request_id: str | None = None
    ) -> None:
        """An answer went out. `key`: the question's, if the cache was used. `request_id`: if not the query's."""

    def missed(self) -> None:
        """The cache has no answer."""

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """The language model answered, for one or more callers. `stored`: the cache took the answer."""

    def refused(self, query: Query, error: RagherdError) -> None:
        """A query ended without an answer."""

    def refused_unread(self, tenant: str, error: RagherdError) -> None:
        """A limit refused a query whose body was not read."""

    def left(self, query: Query) -> None:
        """The caller disconnected before the answer was complete."""

    def store_failed(self, error: StoreUnavailable) -> None:
        """An answer was served without the cache or the knowledge base."""

    def store_late(self, error: StoreUnavailable) -> None:
        """Storing an answer takes longer than the request may wait. It continues in the background."""

    def stored_late(self) -> None:
        """Storing in the background succeeded."""

    def embedding_failed(self, error: EmbeddingUnavailable) -> None:
        """An answer was served without the semantic tier."""

    def cited(self, sources: int, removed: int) -> None:
        """A grounded answer is complete; it cites `sources`, and `removed` invalid citations were deleted."""

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """The knowledge base was searched for an answer."""

    def grounded_checked(self, outcome: GroundedCheckOutcome) -> None:
        """A cached answer's passages were compared with those of a similar question."""

    def guard_rejected(self, guard: str, detail: str, similarity: float) -> None:
        """A guard rejected a similar cached question. `detail` says what differs."""

    def policy_decided(self, decision: PolicyDecision) -> None:
        """A policy other than `guarded` decided about a question."""

    def quality_event(self, event: QualityEvent) -> None:
        """The fleet tightens or loosens, or starts or stops using what it has learned."""

    def language_unknown(self) -> None:
        """A question was not compared by meaning, because the embedder does not know its language."""

    def refreshing(self, outcome: RefreshOutcome) -> None:
        """The refresh of a served, expired answer ended."""

    def compared(self, stage: str, verdict: Verdict) -> None:
        """Two answers were compared. `stage`: what decided, or was asked last."""

    def judge_failed(self, reason: JudgeFailure) -> None:
        """The judge model gave no verdict on two answers."""

    def labelled(self, source: LabelSource, verdict: Verdict, variant: Variant | None = None) -> None:
        """A label was written. `variant`: that of the question."""

    def label_dropped(self, reason: LabelLoss) -> None:
        """A label was not written."""

    def shadow_called(self, outcome: ShadowOutcome) -> None:
        """A sampled hit was generated again and compared, or skipped."""

    def tool_called(self, tool: str, outcome: str) -> None:
        """A tool of MCP was called. `outcome`: `ok`, `left`, or the slug of the error."""

    # -- calls to Ollama ----------------------------------------------------------------------------------------------

    def upstream_failed(self, error: UpstreamError) -> None:
        """A call to Ollama failed."""

    def failed_over(self, backend: str, error: UpstreamError) -> None:
        """A call left `backend` for another one. Clients do not notice."""

    def overdue(self, backend: str, count: int) -> None:
        """So many permits of this worker are kept, because the backend may still read prompts of callers that left."""

    def backend_hangs(self, backend: str) -> None:
        """The backend gave no token within two first-token deadlines."""

    def prefix_chosen(self, reason: PrefixChoice, matched: int, size: int) -> None:
        """A backend was chosen that has read `matched` bytes of a prompt before. `size`: all that were compared."""

    def bulkhead_admitted(self, bulkhead: str, priority: str, seconds: float) -> None:
        """A call got its permit after waiting `seconds`."""

    def bulkhead_rejected(self, bulkhead: str, reason: BulkheadReason, priority: str) -> None:
        """A call got no permit."""

    def bulkhead_share_reached(self, bulkhead: str) -> None:
        """A call waits although a permit is free, because its tenant has its share."""

    def bulkhead_store_lost(self, bulkhead: str, limit: int) -> None:
        """Without Redis this worker limits its calls to its share of `limit`."""

    def bulkhead_store_found(self, bulkhead: str) -> None:
        """Redis bounds the calls of the fleet again."""

    def flight_handed_over(self) -> None:
        """A flight's leader was lost or left, and this worker took the lead."""

    def flight_alone(self) -> None:
        """The leader did not answer in time, or Redis was lost meanwhile: this worker generates for itself."""

    def flight_fenced(self) -> None:
        """This worker lost its lead without noticing: only its own callers get its answer."""

    # -- operators ----------------------------------------------------------------------------------------------------

    def invalidated(self, asked: Invalidation, swept: Swept) -> None:
        """An operator deleted cached answers."""

    def voted(self, vote: Vote, voted: Voted) -> None:
        """A user judged an answer."""

    def stored_ahead(self) -> None:
        """A warm-up stored an answer."""

    def warm_up_taken(self, job: str) -> None:
        """This worker continues a warm-up."""

    def warm_up_failed(self, job: str, error: str) -> None:
        """A question of a warm-up failed for good."""

    def verified(self, seconds: float) -> None:
        """The verifier scored candidates."""

    def verifying_failed(self, error: VerifierUnavailable, seconds: float) -> None:
        """The verifier scored no candidate after this many seconds."""

    def verifier_changed(self, digest: str) -> None:
        """This worker uses another verifier."""

    def verifier_not_changed(self, digest: str, error: str) -> None:
        """This worker cannot load the fleet's verifier, and keeps its own."""

    # -- documents ----------------------------------------------------------------------------------------------------

    def document_stored(self, chunks: int) -> None:
        """A revision of a document went into service."""

    def document_failed(self, document: str, error: str) -> None:
        """An accepted document cannot be stored."""

    def document_delayed(self, document: str, reason: str) -> None:
        """The embedder fails; a document is delayed for the first time in a row."""

    def chunks_embedded(self, count: int) -> None:
        """Chunks were embedded and written."""

    def chunk_not_embedded(self, document: str, chunk: int, reason: str) -> None:
        """The embedder cannot embed a chunk. Search finds it by its words only."""

    def embeddings_removed(self, embedder: str, chunks: int) -> None:
        """Chunks of an embedder that no worker uses any more were deleted."""

    def answers_outdated(self, reason: Literal["changed", "affected"], count: int) -> None:
        """A change of documents invalidated cached answers."""

    def reranked(self, seconds: float) -> None:
        """The re-ranker sorted a question's passages."""

    def reranking_failed(self, error: RerankingUnavailable, seconds: float) -> None:
        """The re-ranker failed; the passages keep their order."""
