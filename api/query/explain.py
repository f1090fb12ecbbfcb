"""Explains why a question would be a hit or a miss, with the flow's own steps; serves and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.errors import EmbeddingUnavailable, ServiceUnavailable, StoreUnavailable
from api.guards.agreement import GuardVerdict, verdicts
from api.ports.answer_cache import AnswerCache
from api.ports.inference import Embedder
from api.ports.question import SEMANTIC_LIMIT, Query, Timings
from api.query.cache import CachePolicy, Lookup
from api.query.cache_key import CacheKey, CacheKeyBuilder, normalise
from api.query.candidates import USABLE, Candidate, CandidateOutcome, ComparedQuestion, best, consider, lifetime
from api.query.grounded_check import GUARD, GroundedCheck
from api.values import CacheMatch, Vector

Decision = Literal["exact_hit", "semantic_hit", "stale", "miss", "bypass"]


@dataclass(frozen=True, slots=True)
class Explained:
    """One candidate, every guard's verdict on it, and that of the grounded check if it was made."""

    candidate: Candidate
    guards: Sequence[GuardVerdict]
    grounded: GuardVerdict | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation. `exact` is the question's own entry, fresh or not; `exact_fate` is the outcome for it.

    `unread`: parts that the vector does not cover. `language`: the question's, if the embedder was not trained for it.
    """

    normalised: str
    key: CacheKey
    decision: Decision
    reason: str
    exact: CacheMatch | None = None
    exact_fate: CandidateOutcome | None = None
    candidates: Sequence[Explained] = ()
    unread: tuple[str, ...] = ()
    language: str = ""


class Explainer:
    """Looks at the cache as the flow does. `cache` is None if the semantic cache is disabled."""

    def __init__(
        self,
        cache: AnswerCache | None,
        embedder: Embedder,
        keys: CacheKeyBuilder,
        policy: CachePolicy,
        grounded_check: GroundedCheck | None = None,
    ) -> None:
        self._cache = cache
        self._embedder = embedder
        self._keys = keys
        self.policy = policy
        self._grounded_check = grounded_check

    async def explain(self, query: Query) -> Explanation:
        """Explains a query. Raises `ServiceUnavailable` if the cache cannot be used now."""
        if self._cache is None:
            raise ServiceUnavailable("The semantic cache is switched off.")
        try:
            key = await self._keys.of(query)
            return await self._explained(self._cache, query, key)
        except (StoreUnavailable, EmbeddingUnavailable) as error:
            raise ServiceUnavailable(f"The cache cannot be used now: {error}.", retry_after=1) from error

    async def _explained(self, cache: AnswerCache, query: Query, key: CacheKey) -> Explanation:
        found = await cache.find_exact(key.scope, key.digest)
        exact = found.match
        fate = lifetime(exact, query.cache_control, self.policy.revalidate) if exact is not None else None
        asked, vector = await self._asked(query)
        candidates: Sequence[Candidate] = ()
        if vector is not None and not asked.language:
            candidates = await self._candidates(cache, query, key, asked, vector, found.now_ms)
        decision, reason = self._decision(query, asked, fate, candidates)
        explained = [Explained(one, _verdicts(query.question, one), self._grounded(one)) for one in candidates]
        return Explanation(
            normalise(query.question), key, decision, reason, exact, fate, explained, asked.not_told, asked.language
        )

    async def _asked(self, query: Query) -> tuple[ComparedQuestion, Vector | None]:
        """Returns the question as the semantic tier compares it; without a vector if it does not."""
        languages = self.policy.languages
        if not query.has_meaning:
            return ComparedQuestion(query.question, languages=languages), None
        (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
        return ComparedQuestion(query.question, embedding.unread, languages), embedding.vector

    async def _candidates(
        self, cache: AnswerCache, query: Query, key: CacheKey, asked: ComparedQuestion, vector: Vector, now_ms: int
    ) -> Sequence[Candidate]:
        stale_ms = round(self.policy.stale * 1000)
        matches = await cache.find_similar(key.embedder, key.scope, vector, now_ms, stale_ms=stale_ms)
        policy = self.policy
        candidates = list(consider(asked, matches, policy.threshold, query.cache_control, policy.revalidate))
        if self._grounded_check is None:
            return candidates
        return await self._grounded_check.all(candidates, query, Lookup(now_ms=now_ms, vector=vector), Timings())

    def _grounded(self, candidate: Candidate) -> GuardVerdict | None:
        """Returns the grounded check's verdict: made if the guards agreed and the answer has sources."""
        objection = candidate.objection
        if objection is not None and objection.guard == GUARD:
            return GuardVerdict(GUARD, agrees=False, detail=objection.detail)
        made = self._grounded_check is not None and candidate.fate in USABLE and candidate.match.answer.sources
        return GuardVerdict(GUARD, agrees=True, detail="") if made else None

    def _decision(
        self, query: Query, asked: ComparedQuestion, exact: CandidateOutcome | None, candidates: Sequence[Candidate]
    ) -> tuple[Decision, str]:
        if not query.cache_control.reads:
            return "bypass", "The request's Cache-Control allows no cached answer."
        if exact is CandidateOutcome.FRESH:
            return "exact_hit", "The same question has a fresh answer."
        if exact is CandidateOutcome.STALE:
            return "stale", "The same question has an expired answer, which is served once more while it is refreshed."
        chosen = best(candidates)
        if chosen is None:
            return "miss", _why_not(query, asked, candidates)
        if chosen.fate is CandidateOutcome.STALE:
            return "stale", "A question that means the same has an expired answer, which is served and refreshed."
        return "semantic_hit", "A question that means the same has a fresh answer."


def _verdicts(question: str, candidate: Candidate) -> Sequence[GuardVerdict]:
    """Returns every guard's verdict; first, whether the two may be compared by their vectors at all."""
    found = verdicts(question, candidate.match.answer.question)
    objection = candidate.objection
    if objection is None or objection.guard == GUARD or any(one.guard == objection.guard for one in found):
        return found
    return (GuardVerdict(objection.guard, agrees=False, detail=objection.detail), *found)


def _why_not(query: Query, asked: ComparedQuestion, candidates: Sequence[Candidate]) -> str:
    if query.history:
        return "A question with history is found exactly or not at all."
    if not query.has_meaning:
        return f"A question of more than {SEMANTIC_LIMIT} bytes is found exactly or not at all."
    if asked.language:
        return (
            f"The question is not in a language of the embedder ({asked.language}): it is found exactly or not at all."
        )
    if not candidates:
        return "Nothing is cached in this scope."
    fates = {candidate.fate for candidate in candidates}
    if fates == {CandidateOutcome.BELOW_THRESHOLD}:
        return "The nearest question is not near enough."
    if asked.not_told and any(one.objection is not None and one.objection.guard == "unread" for one in candidates):
        return "The embedder cannot read all of the question, and other words are unread in every near one."
    if CandidateOutcome.REJECTED in fates:
        return "A guard objects to every question that is near enough and not expired."
    return "What is near enough has expired, or is older than the request accepts."
