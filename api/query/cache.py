"""The cache's steps in the flow: look up, fall back to an expired answer, store, within a time budget.

If the cache fails or is too slow, the question is answered without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from api.cancellation import cancel_and_wait, log_failure, wait_with_lag
from api.errors import DocumentsChanged, EmbeddingUnavailable, StoreUnavailable
from api.languages.identify import EVERY, Languages
from api.ports.answer_cache import AnswerCache, Claim, NearestSearch, NewAnswer, RetrievalSnapshot
from api.ports.answer_quality import PolicyDecision, PolicyName, PolicyOutcome, Verifier, Versions
from api.ports.document_store import Corpus
from api.ports.inference import Embedder
from api.ports.question import Query, Timings
from api.ports.telemetry import Telemetry
from api.ports.tracing import Step
from api.quality.evidence import NEIGHBOURS
from api.quality.keeper import QualityView, VariantQuality
from api.quality.policies import QualitySettings, Rules
from api.query.cache_key import CacheKey, CacheKeyBuilder
from api.query.candidates import (
    Candidate,
    CandidateOutcome,
    ComparedQuestion,
    SimilarQuestions,
    best,
    consider,
    lifetime,
    up_to_the_first_fresh,
)
from api.query.condense import EarlierTurns
from api.query.grounding import GroundedCheck, Retrieval
from api.query.policy_choice import PolicyChoice
from api.query.repeats import LONGEST_ANSWER, Agreed, Found, RepeatedLookups
from api.values import CachedAnswer, CacheMatch, Generation, Source, Vector

FEWER: Final = 5
"""Candidates of a policy that learns nothing from the others."""


def is_complete(generation: Generation, options: Mapping[str, Any]) -> bool:
    """Returns whether the answer is not empty, and the model ended it or reached the caller's `num_predict`."""
    reason = generation.end.done_reason
    ended = reason == "stop" or (reason == "length" and "num_predict" in options)
    return ended and bool(generation.text.strip())


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """The cache's settings. `threshold`: the lowest cosine of a similar question. `languages`: those of the embedder.

    `revalidate`: seconds after expiry in which an answer is served while it is refreshed. `stale`: seconds after expiry
    in which it is served if Ollama fails. `follow_ups`: questions with history are compared by meaning too.
    """

    threshold: float
    revalidate: float = 0.0
    stale: float = 86_400.0
    languages: Languages = EVERY
    follow_ups: bool = False

    def compares(self, query: Query) -> bool:
        """Returns whether a question is compared by meaning; a follow-up only within its conversation's scope."""
        return query.has_meaning or (self.follow_ups and query.is_short)


@dataclass(slots=True)
class Lookup:
    """The result of looking a question up in the cache.

    `key` is None if the cache is not used for this answer; `available` is false while it cannot be used. `stale` is
    true if `match` has expired and must be refreshed. `expired` is the question's own expired entry. `unread`: the
    parts of the question that the embedder could not read. `corpus`: the tenant's documents at `now_ms`, if known.
    `search`: the last one; it found `similar` if it was sent along with the exact look-up. `retrieval`: the passages
    that the grounded check found. `decision`: the policy's, if it is not `guarded`. `agreed`: what a repeat of the
    question may rely on. `asked`: the question as the semantic tier read it.
    """

    key: CacheKey | None = None
    available: bool = False
    now_ms: int = 0
    invalidated_ms: int = 0
    vector: Vector | None = None
    unread: tuple[str, ...] = ()
    match: CacheMatch | None = None
    stale: bool = False
    expired: CacheMatch | None = None
    candidates: Sequence[Candidate] = field(default_factory=tuple)
    corpus: Corpus | None = None
    search: NearestSearch | None = None
    similar: Sequence[CacheMatch] | None = None
    retrieval: Retrieval | None = None
    decision: PolicyDecision | None = None
    agreed: Agreed | None = None
    asked: ComparedQuestion | None = None

    @classmethod
    def repeated(cls, found: Found) -> Lookup:
        """The result for a repeat."""
        key, match, agreed = found
        lookup = cls(key, available=True, now_ms=match.now_ms, match=match, agreed=agreed)
        if agreed is not None:
            lookup.vector, lookup.unread = agreed.vector, agreed.unread
        return lookup


# -- the budget of time -----------------------------------------------------------------------------------------------

T = TypeVar("T")
CLOSE_SECONDS: Final = 2.0
"""Seconds that late commands have to finish when the worker stops."""


class BudgetSpent(StoreUnavailable):
    """The command took too long for its question. It continues in the background."""

    def __init__(self, seconds: float, command: asyncio.Future[Any]) -> None:
        super().__init__(f"the cache took longer than {seconds:g} s for one question")
        self._command = command

    def then(self, ended: Callable[[asyncio.Future[Any]], None]) -> None:
        """Calls `ended` with the command when it ends."""
        self._command.add_done_callback(ended)


class CacheBudget:
    """The time that one question may spend on the cache. It has used `Timings.cache` less this worker's lag."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late: set[asyncio.Task[Any]] = set()

    async def within(self, timings: Timings, command: Coroutine[Any, Any, T]) -> T:
        """Returns the result of `command`. Raises its errors, `BudgetSpent`, and `StoreUnavailable` for a cancellation.

        A late command is not cancelled: cancelling would cost its connection, and slow down a slow store even more.
        It also lets an answer that is being stored reach the cache.
        """
        task = asyncio.create_task(command)
        started = time.perf_counter()
        try:
            timings.lag += await wait_with_lag(task, self._seconds - (timings.cache - timings.lag))
        except BaseException:  # the caller was cancelled
            self._let_go(task)
            raise
        finally:
            timings.cache += time.perf_counter() - started
        if not task.done():
            self._let_go(task)
            raise BudgetSpent(self._seconds, task)
        if task.cancelled():
            raise StoreUnavailable("the command was cancelled")
        try:
            return task.result()
        finally:
            del task  # it may hold the error that leaves here

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        log_failure(task, StoreUnavailable, DocumentsChanged)

    async def aclose(self) -> None:
        """Waits up to `CLOSE_SECONDS` for late commands, so that answers being stored reach the cache."""
        if self._late:
            await asyncio.wait(self._late, timeout=CLOSE_SECONDS)
        await cancel_and_wait(self._late)


def _guarded(threshold: float) -> QualitySettings:
    """The settings of a cache that learns nothing."""
    return QualitySettings(PolicyName.GUARDED, threshold, 0.02, Versions(""))


def _nothing(match: CacheMatch) -> None:
    """Does nothing: without a cache no entry is served."""


Turn = Callable[[], AbstractAsyncContextManager[bool]]


def at_once() -> AbstractAsyncContextManager[bool]:
    """The turn of a request that need not wait."""
    return nullcontext(True)


class SemanticCache:
    """One worker's use of the fleet's cached answers. `cache` is None if the semantic cache is disabled."""

    def __init__(
        self,
        cache: AnswerCache | None,
        embedder: Embedder,
        keys: CacheKeyBuilder,
        observer: Telemetry,
        policy: CachePolicy,
        budget: CacheBudget,
        grounded_check: GroundedCheck | None = None,
        quality: QualityView | None = None,
        verifier: Verifier | None = None,
        step: Step = nullcontext,
    ) -> None:
        """`grounded_check` is None if cached answers are not compared with the question's own passages.

        `quality`: what the fleet has learned; by default nothing, and the policy is `guarded`. `step` traces the
        decision about candidates.
        """
        self._cache = cache
        self._embedder = embedder
        self._keys = keys
        self._observer = observer
        self.policy = policy
        self._budget = budget
        self._grounded_check = grounded_check
        self.quality = quality or QualityView(_guarded(policy.threshold))
        self._policy_choice = PolicyChoice(self.quality, grounded_check, verifier)
        self._step = step
        self._similar_questions = SimilarQuestions()
        self.used: Callable[[CacheMatch], None] = cache.used if cache is not None else _nothing
        """Records that an entry was served; no I/O."""
        self.repeats = None if cache is None or self.quality.observes else RepeatedLookups(cache, keys, self.quality)

    async def look_up(self, query: Query, timings: Timings, turn: Turn = at_once) -> Lookup:
        """Looks in the exact tier, embeds the question, and looks in the semantic tier, until an answer is found.

        `turn` is entered before an embedding, and yields whether there may be one.
        """
        lookup, variant = Lookup(), query.variant
        if self._cache is None or query.cache_control.no_store or (variant is not None and not variant.caches):
            return lookup
        quality = self.quality if variant is None else self.quality.of(variant)
        try:
            lookup.key = await self._keys.of(query)
            lookup.available = True
            await self._exact(self._cache, query, lookup.key, lookup, timings)
            if lookup.match is not None and not quality.observes:
                return lookup
            async with turn() as may_embed:
                if may_embed:
                    await self._by_meaning(self._cache, query, lookup, timings, observes=quality.observes)
                elif quality.observes:
                    self._observed(lookup)
        except EmbeddingUnavailable as error:
            self._observer.embedding_failed(error)
        except StoreUnavailable as error:
            lookup.available = False
            self._observer.store_failed(error)
        return lookup

    async def _by_meaning(
        self, cache: AnswerCache, query: Query, lookup: Lookup, timings: Timings, *, observes: bool
    ) -> None:
        if query.history and lookup.match is None and self.policy.follow_ups:
            await self._as_first_worded(cache, query, lookup, timings)
        decided = observes and self._observed(lookup)
        if lookup.match is None:
            await self.embed(query, lookup, timings)
        if lookup.match is None and lookup.vector is not None and query.cache_control.reads and not decided:
            await self._semantic(query, lookup, timings)

    async def _as_first_worded(self, cache: AnswerCache, query: Query, lookup: Lookup, timings: Timings) -> None:
        """Looks in the exact tier after the same conversation as the cache words it, if that differs."""
        rules = self._quality(query).rules(lookup.key.scope, query.tenant) if lookup.key is not None else None
        if rules is None or rules.closed or not query.cache_control.reads:
            return
        turns = EarlierTurns(cache, self._keys, replace(self.policy, threshold=rules.threshold), query)
        if not turns.questions:
            return
        with timings.timed("embed"):
            embeddings = await self._embedder.embed(turns.questions, tenant=query.tenant)
        asked = await self._budget.within(timings, turns.as_first_worded(embeddings, lookup.now_ms))
        if asked is not query:
            lookup.key = await self._keys.of(asked)
            await self._exact(cache, asked, lookup.key, lookup, timings)

    async def look_again(self, query: Query, lookup: Lookup, timings: Timings) -> None:
        """Looks in the exact tier again, after another worker has stored the answer."""
        if self._cache is None or lookup.key is None:
            return
        try:
            await self._exact(self._cache, query, lookup.key, lookup, timings)
            if self._quality(query).observes:
                lookup.match, lookup.stale, lookup.expired = None, False, None
        except StoreUnavailable as error:
            lookup.available = False  # otherwise the flight would ask the cache again, and loop
            self._observer.store_failed(error)

    async def _exact(self, cache: AnswerCache, query: Query, key: CacheKey, lookup: Lookup, timings: Timings) -> None:
        """Looks in the exact tier. It sets `now_ms` even if the caller wants no cached answer; storing needs it."""
        search = self._similar_questions.find(key) if query.cache_control.reads else None
        asked = (key.scope, key.digest, query.tenant)
        charge = query.charge if query.charge is not None and query.charge.charges_hits else None
        finding = cache.find_exact(*asked, documents=query.wants_passages, search=search, charge=charge)
        found = await self._budget.within(timings, finding)
        if charge is not None:
            charge.check()
        lookup.now_ms, lookup.invalidated_ms, lookup.corpus = found.now_ms, found.invalidated_ms, found.corpus
        lookup.search, lookup.similar = search, found.similar
        if search is not None and found.match is not None:
            self._similar_questions.forget(key)
        if found.match is None or not query.cache_control.reads:
            return
        if found.match.is_fresh and query.cache_control.max_age is None:
            lookup.match = found.match
            return
        fate = lifetime(found.match, query.cache_control, self._revalidate(query))
        if fate in (CandidateOutcome.FRESH, CandidateOutcome.STALE):
            lookup.match, lookup.stale = found.match, fate is CandidateOutcome.STALE
        elif fate is CandidateOutcome.EXPIRED:
            lookup.expired = found.match

    def _observed(self, lookup: Lookup) -> bool:
        """Serves nothing. Counts what the exact tier would have served, and returns whether it would."""
        would_serve = lookup.match is not None
        if would_serve:
            self._observer.policy_decided(PolicyDecision(PolicyName.OBSERVE, PolicyOutcome.WOULD_SERVE))
        lookup.match, lookup.stale, lookup.expired = None, False, None
        return would_serve

    async def embed(self, query: Query, lookup: Lookup, timings: Timings) -> None:
        """Embeds the question, unless it is not compared by meaning."""
        if not self.policy.compares(query):
            return
        started = time.perf_counter()
        try:
            (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
            lookup.vector, lookup.unread = embedding.vector, embedding.unread
        except EmbeddingUnavailable as error:
            self._observer.embedding_failed(error)
        finally:
            timings.embed += time.perf_counter() - started

    async def _semantic(self, query: Query, lookup: Lookup, timings: Timings) -> None:
        asked = lookup.asked = self._asked(query, lookup)
        if asked.language:
            self._observer.language_unknown()
            return
        explores = not query.cache_control.only_if_cached
        chosen = await self._similar(asked, query, lookup, timings, self._revalidate(query), explores=explores)
        for candidate in lookup.candidates:
            if (objection := candidate.objection) is not None:
                self._observer.guard_rejected(objection.guard, objection.detail, candidate.match.similarity)
        if lookup.decision is not None:
            self._observer.policy_decided(lookup.decision)
        assert lookup.key is not None, "the exact tier was asked first"
        if chosen is None or lookup.search is None:
            self._similar_questions.forget(lookup.key)
            return
        self._similar_questions.add(lookup.key, lookup.search)
        lookup.match, lookup.stale = chosen.match, chosen.fate is CandidateOutcome.STALE

    async def _similar(
        self,
        asked: ComparedQuestion,
        query: Query,
        lookup: Lookup,
        timings: Timings,
        stale_seconds: float,
        *,
        explores: bool = False,
    ) -> Candidate | None:
        if self._cache is None or lookup.key is None or lookup.vector is None or asked.language:
            return None
        key = lookup.key
        stale_ms = round(stale_seconds * 1000)
        quality = self._quality(query)
        threshold = quality.of_tenants.get(query.tenant, quality.by_threshold)
        if threshold is None:
            matches, rules = await self._near(self._cache, key, query, lookup, timings, stale_ms)
            with self._step("guards"):
                return await self._policy_choice.best(
                    matches, rules, asked, query, lookup, timings, stale_seconds, explores=explores
                )
        matches = await self._nearest(self._cache, key, lookup, timings, stale_ms, FEWER)
        with self._step("guards"):
            fates = consider(asked, matches, threshold, query.cache_control, stale_seconds)
            lookup.candidates = considered = up_to_the_first_fresh(fates)
            chosen = best(considered)
            if chosen is not None and chosen.match.answer.sources and self._grounded_check is not None:
                chosen = await self._grounded_check.best(considered, fates, query, lookup, timings)
            elif quality is self.quality:
                lookup.agreed = self._agreed(considered, query, lookup)
        return chosen

    def _agreed(self, considered: Sequence[Candidate], query: Query, lookup: Lookup) -> Agreed | None:
        """Returns what a repeat may rely on: the nearest entry, if it is fresh and no guard objects."""
        nearest = considered[0] if considered else None
        if nearest is None or nearest.fate is not CandidateOutcome.FRESH or query.history or lookup.vector is None:
            return None
        if nearest.objection is not None or len(nearest.match.answer.answer) > LONGEST_ANSWER:
            return None
        return Agreed(nearest.match, lookup.vector, lookup.unread, self.quality.published)

    async def _near(
        self, cache: AnswerCache, key: CacheKey, query: Query, lookup: Lookup, timings: Timings, stale_ms: int
    ) -> tuple[Sequence[CacheMatch], Rules]:
        """Returns the nearest entries for a policy other than `guarded`, and its rules."""
        rules = self._quality(query).rules(key.scope, query.tenant)
        count = NEIGHBOURS if rules.verifies else FEWER
        return await self._nearest(cache, key, lookup, timings, stale_ms, count), rules

    async def _nearest(
        self, cache: AnswerCache, key: CacheKey, lookup: Lookup, timings: Timings, stale_ms: int, count: int
    ) -> Sequence[CacheMatch]:
        """Returns the nearest entries, at once if the exact look-up has brought them along."""
        assert lookup.vector is not None, "the question is embedded"
        search = NearestSearch(key.embedder, lookup.vector, stale_ms, count)
        if lookup.similar is not None and lookup.search == search:
            return lookup.similar
        lookup.search, lookup.similar = search, None
        finding = cache.find_similar(
            key.embedder, key.scope, lookup.vector, lookup.now_ms, stale_ms=stale_ms, neighbours=count
        )
        return await self._budget.within(timings, finding)

    def _quality(self, query: Query) -> QualityView | VariantQuality:
        """Returns the rules that hold for a query."""
        return self.quality if query.variant is None else self.quality.of(query.variant)

    def _asked(self, query: Query, lookup: Lookup) -> ComparedQuestion:
        return ComparedQuestion(query.question, lookup.unread, self.policy.languages)

    def _revalidate(self, query: Query) -> float:
        """Returns 0 for a caller who allows no call to Ollama, because refreshing needs one."""
        return 0.0 if query.cache_control.only_if_cached else self.policy.revalidate

    async def expired(self, query: Query, lookup: Lookup, timings: Timings) -> CacheMatch | None:
        """Returns an expired answer if Ollama fails: the same question's, else a similar one's."""
        if not query.cache_control.reads or self._quality(query).observes:
            return None
        if lookup.expired is not None or lookup.vector is None:
            return lookup.expired
        try:
            chosen = await self._similar(self._asked(query, lookup), query, lookup, timings, self.policy.stale)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
            return None
        return chosen.match if chosen is not None else None

    async def store(
        self,
        query: Query,
        lookup: Lookup,
        grounds: RetrievalSnapshot | None,
        sources: tuple[Source, ...],
        generation: Generation,
        timings: Timings,
        claim: Claim | None = None,
    ) -> CachedAnswer | None:
        """Stores a complete answer. Returns None if it was not stored, or if `claim` has passed to another worker.

        Returns None, too, if storing takes too long: it continues in the background and is counted when it ends.
        Raises `DocumentsChanged` if documents changed after the search.
        """
        if (
            self._cache is None
            or lookup.key is None
            or not lookup.available
            or not is_complete(generation, query.options)
        ):
            return None
        answer = NewAnswer(
            query.question,
            generation.text,
            generation.end.model,
            query.tenant,
            sources,
            usage=generation.end.usage,
            asked_ms=lookup.now_ms,
            grounds=grounds,
            unread=lookup.unread,
            is_follow_up=bool(query.history),
        )
        key = lookup.key
        try:
            storing = self._cache.store(key.scope, key.digest, lookup.vector, answer, claim=claim)
            return await self._budget.within(timings, storing)
        except BudgetSpent as late:
            self._observer.store_late(late)
            late.then(self._stored_late)
        except StoreUnavailable as error:
            self._observer.store_failed(error)
        return None

    def _stored_late(self, storing: asyncio.Future[CachedAnswer | None]) -> None:
        """Counts a late store by its outcome. If documents changed meanwhile, it was rejected and did not fail."""
        error = None if storing.cancelled() else storing.exception()
        if isinstance(error, StoreUnavailable):
            self._observer.store_failed(error)
        elif storing.cancelled():
            self._observer.store_failed(StoreUnavailable("the worker ended first"))
        elif error is None and storing.result() is not None:
            self._observer.stored_late()
