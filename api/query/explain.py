"""Explains why a question would be a hit or a miss, with the flow's own steps; serves and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from api.errors import EmbeddingUnavailable, ServiceUnavailable, StoreUnavailable, VerifierUnavailable
from api.guards.agreement import GuardVerdict, disagreement, read, verdicts
from api.ports.answer_cache import AnswerCache
from api.ports.answer_quality import LabelStore, PolicyDecision, PolicyName, PolicyOutcome, Verifier
from api.ports.inference import Embedder
from api.ports.question import SEMANTIC_LIMIT, Query, Timings
from api.quality.evidence import NEIGHBOURS, NearEntry
from api.quality.keeper import QualityView
from api.quality.policies import CANDIDATES_FROM, Rules, decide
from api.query.cache import CachePolicy, Lookup
from api.query.cache_key import CacheKey, CacheKeyBuilder, normalise
from api.query.candidates import (
    USABLE,
    Candidate,
    CandidateOutcome,
    ComparedQuestion,
    consider,
    incomparable,
    lifetime,
)
from api.query.condense import EarlierTurns
from api.query.experiments import ExperimentView
from api.query.grounding import GUARD, GroundedCheck
from api.values import CacheMatch, Vector

Decision = Literal["exact_hit", "semantic_hit", "stale", "miss", "bypass"]
FEWER: Final = 5
"""Candidates of the policies that learn nothing from the others."""
LABELS: Final = 500
"""Labels of a scope that are counted. Reading more would keep users of this worker waiting."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One candidate, every guard's verdict on it, and that of the grounded check if it was made.

    `score`: the verifier's, and `verified`: what the policy `verified` decides about this candidate alone; None without
    a verifier or a model, and for the question's own entry, which needs neither. `labels`: how many labels of the entry
    have each verdict.
    """

    candidate: Candidate
    guards: Sequence[GuardVerdict]
    grounded: GuardVerdict | None = None
    score: float | None = None
    verified: PolicyOutcome | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation. `exact` is the question's own entry, fresh or not; `exact_fate` is the outcome for it.

    `unread`: parts that the vector does not cover. `language`: the question's, if the embedder was not trained for it.
    `rules`: in force for the scope. `policies`: what each policy would decide, by index of the candidates.
    `exact_labels`: the labels of `exact`, as those of a candidate. `variant`: the label of the experiment's variant.
    """

    normalised: str
    key: CacheKey
    decision: Decision
    reason: str
    rules: Rules
    policies: Mapping[PolicyName, PolicyDecision]
    exact: CacheMatch | None = None
    exact_fate: CandidateOutcome | None = None
    candidates: Sequence[Explained] = ()
    unread: tuple[str, ...] = ()
    language: str = ""
    exact_labels: Mapping[str, int] = field(default_factory=dict)
    variant: str = ""


class Explainer:
    """Looks at the cache as the flow does. `cache` is None if the semantic cache is disabled."""

    def __init__(
        self,
        cache: AnswerCache | None,
        embedder: Embedder,
        keys: CacheKeyBuilder,
        policy: CachePolicy,
        quality: QualityView,
        experiments: ExperimentView,
        grounded_check: GroundedCheck | None = None,
        labels: LabelStore | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._cache = cache
        self._embedder = embedder
        self._keys = keys
        self.policy = policy
        self._grounded_check = grounded_check
        self._quality = quality
        self._experiments = experiments
        self._labels = labels
        self._verifier = verifier

    async def explain(self, query: Query) -> Explanation:
        """Explains a query. Raises `ServiceUnavailable` if the cache cannot be used now."""
        if self._cache is None:
            raise ServiceUnavailable("The semantic cache is switched off.")
        if self._experiments.running is not None:
            query = self._experiments.running.assigned(query)
        try:
            key = await self._keys.of(query)
            return await self._explained(self._cache, query, key)
        except (StoreUnavailable, EmbeddingUnavailable) as error:
            raise ServiceUnavailable(f"The cache cannot be used now: {error}.", retry_after=1) from error

    async def _explained(self, cache: AnswerCache, query: Query, key: CacheKey) -> Explanation:
        found = await cache.find_exact(key.scope, key.digest)
        quality = self._quality if query.variant is None else self._quality.of(query.variant)
        rules = quality.rules(key.scope, query.tenant)
        if found.match is None and query.history and self.policy.follow_ups and not rules.closed:
            worded = await self._as_first_worded(cache, query, found.now_ms, rules.threshold)
            key = await self._keys.of(worded)
            found = await cache.find_exact(key.scope, key.digest)
        exact = found.match
        fate = lifetime(exact, query.cache_control, self.policy.revalidate) if exact is not None else None
        asked, vector = await self._asked(query)
        candidates: Sequence[Candidate] = ()
        if vector is not None and not asked.language:
            candidates = await self._candidates(cache, query, key, asked, vector, found.now_ms, rules)
        scores = await self._scores(query.question, candidates)
        near = [_near(asked, one, score) for one, score in zip(candidates, scores, strict=True)]
        policies = _policies(near, [self._lifetime(one, query) for one in candidates], rules)
        if not candidates:
            why = "language" if asked.language else "no candidates" if vector is not None else "exact only"
            policies = {name: replace(decided, reason=why) for name, decided in policies.items()}
        seen = candidates if rules.verifies else candidates[:FEWER]
        decision, reason = self._decision(query, asked, fate, seen, policies[rules.policy])
        labels = await self._labels_of(key.scope) if candidates or exact is not None else {}
        explained = [
            Explained(
                one,
                _verdicts(query.question, one),
                self._grounded(one),
                *((None, None) if _is(one, exact) else (scores[index], _verified(near, index, rules))),
                _of_entry(labels, one.match),
            )
            for index, one in enumerate(candidates)
        ]
        return Explanation(
            normalise(query.question),
            key,
            decision,
            reason,
            rules,
            policies,
            exact,
            fate,
            explained,
            asked.not_told,
            asked.language,
            _of_entry(labels, exact) if exact is not None else {},
            query.variant.label if query.variant is not None else "",
        )

    async def _as_first_worded(self, cache: AnswerCache, query: Query, now_ms: int, threshold: float) -> Query:
        turns = EarlierTurns(cache, self._keys, replace(self.policy, threshold=threshold), query)
        embeddings = await self._embedder.embed(turns.questions, tenant=query.tenant) if turns.questions else []
        return await turns.as_first_worded(embeddings, now_ms) if embeddings else query

    async def _asked(self, query: Query) -> tuple[ComparedQuestion, Vector | None]:
        """Returns the question as the semantic tier compares it; without a vector if it does not."""
        languages = self.policy.languages
        if not self.policy.compares(query):
            return ComparedQuestion(query.question, languages=languages), None
        (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
        return ComparedQuestion(query.question, embedding.unread, languages), embedding.vector

    async def _candidates(
        self,
        cache: AnswerCache,
        query: Query,
        key: CacheKey,
        asked: ComparedQuestion,
        vector: Vector,
        now_ms: int,
        rules: Rules,
    ) -> Sequence[Candidate]:
        matches = await cache.find_similar(
            key.embedder,
            key.scope,
            vector,
            now_ms,
            stale_ms=round(self.policy.stale * 1000),
            neighbours=NEIGHBOURS,
        )
        floor = CANDIDATES_FROM if rules.verifies else rules.threshold
        candidates = list(consider(asked, matches, floor, query.cache_control, self.policy.revalidate))
        if rules.policy is PolicyName.FIXED:
            candidates = [
                replace(one, fate=self._lifetime(one, query), objection=None) if one.objection is not None else one
                for one in candidates
            ]
        if self._grounded_check is None:
            return candidates
        return await self._grounded_check.all(candidates, query, Lookup(now_ms=now_ms, vector=vector), Timings())

    def _lifetime(self, candidate: Candidate, query: Query) -> CandidateOutcome:
        return lifetime(candidate.match, query.cache_control, self.policy.revalidate)

    async def _scores(self, question: str, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """Returns the verifier's scores; none without a verifier, or if it fails."""
        if self._verifier is not None and candidates:
            with suppress(VerifierUnavailable):
                return await self._verifier.score(question, [one.match.answer.question for one in candidates])
        return [None] * len(candidates)

    async def _labels_of(self, scope: str) -> Mapping[str, Mapping[str, int]]:
        """Returns how many labels have each verdict, by the digest of the entry."""
        found: dict[str, Counter[str]] = {}
        for label in await self._labels.of_scope(scope, LABELS) if self._labels is not None else ():
            found.setdefault(label.entry, Counter())[label.verdict.value] += 1
        return found

    def _grounded(self, candidate: Candidate) -> GuardVerdict | None:
        """Returns the grounded check's verdict: made if the guards agreed and the answer has sources."""
        objection = candidate.objection
        if objection is not None and objection.guard == GUARD:
            return GuardVerdict(GUARD, agrees=False, detail=objection.detail)
        made = self._grounded_check is not None and candidate.fate in USABLE and candidate.match.answer.sources
        return GuardVerdict(GUARD, agrees=True, detail="") if made else None

    def _decision(
        self,
        query: Query,
        asked: ComparedQuestion,
        exact: CandidateOutcome | None,
        candidates: Sequence[Candidate],
        decided: PolicyDecision,
    ) -> tuple[Decision, str]:
        if not query.cache_control.reads:
            return "bypass", "The request's Cache-Control allows no cached answer."
        if query.variant is not None and not query.variant.caches:
            return "bypass", "The variant of the experiment does not use the cache."
        if decided.policy is PolicyName.OBSERVE:
            return "miss", "The policy `observe` serves nothing from the cache."
        if exact is CandidateOutcome.FRESH:
            return "exact_hit", "The same question has a fresh answer."
        if exact is CandidateOutcome.STALE:
            return "stale", "The same question has an expired answer, which is served once more while it is refreshed."
        if decided.outcome is not PolicyOutcome.SERVED or decided.index is None:
            return "miss", REFUSALS.get(decided.reason) or _why_not(
                query, asked, candidates, compares=self.policy.compares(query)
            )
        if candidates[decided.index].fate is CandidateOutcome.STALE:
            return "stale", "A question that means the same has an expired answer, which is served and refreshed."
        return "semantic_hit", "A question that means the same has a fresh answer."


REFUSALS: Final[Mapping[str, str]] = {
    "tightened": "Too many cached answers were wrong, so only the same question is served from the cache.",
    "risk": "By the labels, the nearest question's answer is too likely to be wrong.",
    "verifier": "The verifier has not scored the nearest question.",
}
"""Why a policy refuses, by its reason. For other reasons the candidates say more."""


def _near(asked: ComparedQuestion, candidate: Candidate, score: float | None) -> NearEntry:
    """Returns a candidate as policies see it, with the first objection however low the similarity is."""
    stored = candidate.match.answer
    objection = (
        candidate.objection or incomparable(asked, stored) or disagreement(read(asked.question), stored.question)
    )
    guard = objection.guard if objection is not None else ""
    return NearEntry(candidate.match.similarity, stored.group, guard, score)


def _policies(
    near: Sequence[NearEntry], fates: Sequence[CandidateOutcome], rules: Rules
) -> Mapping[PolicyName, PolicyDecision]:
    """Returns what each policy would decide. A fresh answer is served before a stale one that is nearer."""
    fresh = {index for index, fate in enumerate(fates) if fate is CandidateOutcome.FRESH}
    young = {index for index, fate in enumerate(fates) if fate in USABLE}
    found = {}
    for policy in PolicyName:
        its = replace(rules, policy=policy)
        seen = near if its.verifies else near[:FEWER]
        decided = decide(seen, fresh, its)
        found[policy] = decided if decided.reason != "age" else decide(seen, young, its)
    return found


def _of_entry(labels: Mapping[str, Mapping[str, int]], match: CacheMatch) -> Mapping[str, int]:
    return labels.get(match.answer.entry.rpartition(":")[2], {})


def _verified(near: Sequence[NearEntry], index: int, rules: Rules) -> PolicyOutcome | None:
    """Returns what the policy `verified` decides about one candidate; None if it has no model."""
    its = replace(rules, policy=PolicyName.VERIFIED)
    return decide(near, {index}, its).outcome if its.verifies else None


def _is(candidate: Candidate, exact: CacheMatch | None) -> bool:
    return exact is not None and candidate.match.answer.entry == exact.answer.entry


def _verdicts(question: str, candidate: Candidate) -> Sequence[GuardVerdict]:
    """Returns every guard's verdict; first, whether the two may be compared by their vectors at all."""
    found = verdicts(question, candidate.match.answer.question)
    objection = candidate.objection
    if objection is None or objection.guard == GUARD or any(one.guard == objection.guard for one in found):
        return found
    return (GuardVerdict(objection.guard, agrees=False, detail=objection.detail), *found)


def _why_not(query: Query, asked: ComparedQuestion, candidates: Sequence[Candidate], *, compares: bool) -> str:
    if query.history and not compares:
        return "A question with history is found exactly or not at all."
    if not compares:
        return f"A question of more than {SEMANTIC_LIMIT} bytes is found exactly or not at all."
    if asked.language:
        return (
            f"The question is not in a language of the embedder ({asked.language}): it is found exactly or not at all."
        )
    if not candidates:
        return f"Nothing is cached in this scope{' and after this history' if query.history else ''}."
    fates = {candidate.fate for candidate in candidates}
    if fates == {CandidateOutcome.BELOW_THRESHOLD}:
        return "The nearest question is not near enough."
    if asked.not_told and any(one.objection is not None and one.objection.guard == "unread" for one in candidates):
        return "The embedder cannot read all of the question, and other words are unread in every near one."
    if CandidateOutcome.REJECTED in fates:
        return "A guard objects to every question that is near enough and not expired."
    return "What is near enough has expired, or is older than the request accepts."
