"""Values and protocols of the cache's quality: evidence about a candidate, labels, and the policy that serves.

A label says whether a cached answer was right for a later question. Labels come from misses, from hits that are
answered again in the background (shadow calls), and from feedback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from api.ports.experiment import Variant


class PolicyName(StrEnum):
    """SEMANTIC_CACHE_POLICY: which candidates the semantic tier serves."""

    OBSERVE = "observe"
    FIXED = "fixed"
    GUARDED = "guarded"
    VERIFIED = "verified"


class Verdict(StrEnum):
    """Whether two answers say the same thing."""

    SAME = "same"
    DIFFERENT = "different"
    UNSURE = "unsure"


LabelSource = Literal["shadow", "miss", "feedback"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a candidate before it is served. The policy `verified` learns from it.

    `similarity`: the cosine of the two questions. `other`: that of the nearest candidate with another answer; if there
    is none, a little less than the farthest candidate's. `same`, `others`: how many of the nearest candidates have the
    candidate's answer, itself included, and another one; farther ones count less. `guard`: the first guard that
    objects; empty if none does. `verifier`: the cross-encoder's logit; None without one.
    """

    similarity: float
    other: float = 0.0
    same: float = 1.0
    others: float = 0.0
    guard: str = ""
    verifier: float | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of what made a label. Labels of other versions are not mixed."""

    embedder: str
    verifier: str = ""
    comparator: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """One observation of a scope. `served`: the candidate's answer went out.

    `kind`: the tier, `exact`, `semantic` or `stale`. `probability`: the chance that such an answer is labeled; a label
    of a shadow call at a rate of 0.01 stands for 100 hits. `at_ms`: by Redis's clock; 0 before it is stored. `entry`:
    the digest of the candidate's question. `votes`: how many more answers of the candidate's group were judged the same
    as the fresh one than different, 0 if they leave it open; None if nobody asked. `variant`: the label of the variant
    of an experiment; empty without one. `deviates`: it has another policy or threshold than the fleet.
    """

    evidence: Evidence
    verdict: Verdict
    source: LabelSource
    served: bool
    kind: str
    policy: PolicyName
    versions: Versions
    probability: float = 1.0
    at_ms: int = 0
    entry: str = ""
    votes: int | None = None
    variant: str = ""
    deviates: bool = False

    @property
    def balance(self) -> int:
        """The votes, and if there are none, one for the verdict."""
        if self.votes is not None:
            return self.votes
        return {Verdict.SAME: 1, Verdict.DIFFERENT: -1, Verdict.UNSURE: 0}[self.verdict]

    @property
    def of_same_question(self) -> bool:
        """Whether the candidate is the question's own entry, fresh or expired. Every policy but `observe` serves it."""
        return self.kind == "exact" or (self.kind == "stale" and self.evidence.similarity >= 1.0)


@dataclass(frozen=True, slots=True)
class Observation:
    """The circumstances of a label. `embedder`: its fingerprint. `probability`: see `Label`.

    `variant`: that of the question, if an experiment covers it.
    """

    tenant: str
    question: str
    scope: str
    embedder: str
    source: LabelSource
    kind: str = "semantic"
    served: bool = False
    probability: float = 1.0
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two questions of a scope, and whether one answer serves both. Kept only with SEMANTIC_CACHE_KEEP_PAIRS."""

    asked: str
    cached: str
    verdict: Verdict
    scope: str


class LabelStore(Protocol):
    """The fleet's labels in Redis, bounded, per scope and pooled. Every method raises `StoreUnavailable`."""

    async def append(self, scope: str, tenant: str, label: Label, pair: LabelledPair | None = None) -> None:
        """Appends a label to its scope and to the pool."""

    async def of_scope(self, scope: str, limit: int) -> Sequence[Label]:
        """Returns the newest labels of a scope, newest first."""

    async def pooled(self, after: str, limit: int) -> tuple[Sequence[PooledLabel], str]:
        """Returns labels of all scopes after an id, oldest first, and the id to go on from. `after` "" begins."""

    async def retracted(self, after: str) -> tuple[Sequence[str], str]:
        """Returns the ids of pooled labels that were deleted after an id, and the id to go on from."""

    async def pairs(self, limit: int) -> Sequence[LabelledPair]:
        """Returns kept pairs of all scopes."""


@dataclass(frozen=True, slots=True)
class PooledLabel:
    """A label with its scope and tenant, for the fit over all scopes. `id`: in the pool."""

    scope: str
    tenant: str
    label: Label
    id: str = ""


@dataclass(frozen=True, slots=True)
class VerifierFiles:
    """The files of a verifier: model.onnx, tokenizer.json and model.json, which says what it is."""

    weights: bytes
    tokenizer: bytes
    info: bytes = b"{}"

    @property
    def digest(self) -> str:
        """The version: the first 12 hex digits of a SHA-256 over weights and tokenizer (20 ms)."""
        parts = (self.weights, self.tokenizer)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]


class VerifierModels(Protocol):
    """The verifiers of the fleet, and which one is in use. Every method raises `StoreUnavailable`."""

    async def active(self) -> str:
        """Returns the digest of the model in use; empty if it is that of SEMANTIC_CACHE_VERIFIER_PATH."""

    async def read(self, digest: str) -> VerifierFiles | None:
        """Returns the files of a model, or None if they are gone or damaged."""

    async def activate(self, files: VerifierFiles) -> str:
        """Stores a model, puts it in use on all workers, and returns its digest."""

    async def roll_back(self) -> str | None:
        """Puts the model before the active one in use again and returns its digest, as `active`.

        A second call undoes the first. Returns None if no model was ever activated.
        """

    async def renew(self) -> None:
        """Renews the lifetimes of the models in use and before it."""


class Verifier(Protocol):
    """A cross-encoder that reads both questions."""

    @property
    def digest(self) -> str:
        """Identifies its weights. It changes when the fleet puts another model in use."""

    async def score(self, question: str, candidates: Sequence[str]) -> Sequence[float]:
        """Returns one logit for each candidate. Raises `VerifierUnavailable` at its deadline."""


class PolicyOutcome(StrEnum):
    """What a policy does about a question that has candidates.

    `EXPLORED`: a candidate is good enough, but the answer is generated to learn from it. `WOULD_SERVE`: the policy is
    `observe`, and the one it stands in for would have served.
    """

    SERVED = "served"
    EXPLORED = "explored"
    REFUSED = "refused"
    WOULD_SERVE = "would_serve"


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What a policy decides about a question.

    `index`: the candidate that is served, explored, or would be served; else None. `reason`: why nothing is served,
    such as `guard: numbers`; empty if a candidate is served. `probability`: of this random outcome. `error`: the
    upper bound of the probability that the candidate is wrong; None if the policy knows none. `limit`: the highest
    `error` that is served.
    """

    policy: PolicyName
    outcome: PolicyOutcome
    index: int | None = None
    reason: str = ""
    probability: float = 1.0
    error: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often the comparator was wrong on labeled pairs of answers, as counts.

    `different`, `same`: pairs with a verdict, by truth. `unsure_different`: different pairs without a verdict.
    `in_tiers`: `called_different` in tiers where labels have shown that this error is rarer, not as a whole number.
    """

    different: int = 0
    called_same: int = 0
    same: int = 0
    called_different: float = 0
    unsure_different: int = 0
    in_tiers: Mapping[str, float] = field(default_factory=dict)

    def of(self, shares: Mapping[str, float]) -> Confusion:
        """Returns the errors in labels of several tiers. `shares`: the weight of each."""
        total = sum(shares.values())
        if not self.in_tiers or not total:
            return self
        weighted = sum(self.in_tiers.get(tier, self.called_different) * share for tier, share in shares.items())
        return replace(self, called_different=weighted / total, in_tiers={})


@dataclass(frozen=True, slots=True)
class FalseHitRate:
    """The share of served answers that are wrong, with its 95 % interval. `samples`: the labels behind it.

    `served`: how many answers it stands for. Without samples the interval is 0 to 1.
    """

    estimate: float = 0.0
    low: float = 0.0
    high: float = 1.0
    samples: int = 0
    served: float = 0.0

    def figures(self) -> dict[str, float | int | None]:
        """Returns it as JSON shows it. Without samples nothing is known, and the bounds are null."""
        bounds = {"estimate": self.estimate, "low": self.low, "high": self.high}
        known = {name: round(value, 6) if self.samples else None for name, value in bounds.items()}
        return {**known, "samples": self.samples}


@dataclass(frozen=True, slots=True)
class SimilarityBand:
    """Labels of candidates whose cosine lies between `low_end` and `high_end`, served or not."""

    low_end: float
    high_end: float
    labels: int
    wrong: int
    rate: FalseHitRate


QualityChange = Literal["tightened", "loosened", "learned", "forgot"]
"""`learned`: a model of the policy `verified` came into use. `forgot`: it went out of use."""


@dataclass(frozen=True, slots=True)
class QualityEvent:
    """A change of what the fleet serves. `level`: how far it is tightened from then on. `at_ms`: by Redis's clock.

    `tenant`: the one that it concerns; empty if it concerns all.
    """

    at_ms: int
    change: QualityChange
    level: int
    rate: FalseHitRate
    reason: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TenantLevel:
    """How far one tenant is tightened, more than the fleet. `changed_ms`: since when, by Redis's clock."""

    level: int
    changed_ms: int


@dataclass(frozen=True, slots=True)
class QualityState:
    """What the fleet knows about its error, and what it does about it. One worker writes it, and all read it.

    `epoch`: grows with each write; 0 if nothing is known. `level`: 0 is not tightened; at the last level the semantic
    tier is closed. `threshold`, `target_error`: those in force at this level. `rate`: of all answers from the cache.
    `by_kind`, `by_policy`, `by_tenant`: the same in parts. `would_serve`: of what `observe` would have served.
    `labels`: number of labels by source. `unsure`: number of those without a verdict. `learned`: a model is in use.
    `suspected`: the newest labels look like a fault. `tenants`: those that are tightened more than the fleet.
    `by_variant`: the rate of each variant of experiments. `variant_levels`: how far variants with another policy or
    threshold are tightened, and since when (ms).
    """

    epoch: int = 0
    at_ms: int = 0
    policy: PolicyName = PolicyName.GUARDED
    versions: Versions = field(default_factory=lambda: Versions(""))
    level: int = 0
    threshold: float = 0.92
    target_error: float = 0.02
    learned: bool = False
    rate: FalseHitRate = field(default_factory=FalseHitRate)
    would_serve: FalseHitRate = field(default_factory=FalseHitRate)
    by_kind: Mapping[str, FalseHitRate] = field(default_factory=dict)
    by_policy: Mapping[str, FalseHitRate] = field(default_factory=dict)
    by_tenant: Mapping[str, FalseHitRate] = field(default_factory=dict)
    by_similarity: Sequence[SimilarityBand] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    unsure: int = 0
    history: Sequence[QualityEvent] = ()
    suspected: bool = False
    tenants: Mapping[str, TenantLevel] = field(default_factory=dict)
    by_variant: Mapping[str, FalseHitRate] = field(default_factory=dict)
    variant_levels: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def level_of(self, tenant: str) -> int:
        """Returns how far a tenant is tightened."""
        own = self.tenants.get(tenant)
        return self.level if own is None else max(own.level, self.level)

    @property
    def tightened(self) -> bool:
        """Whether the fleet serves less than its settings allow."""
        return self.level > 0


@dataclass(frozen=True, slots=True)
class StoredQuality:
    """What one worker has written for all. `epoch`: 0 if nothing is stored. `text` is None if the reader has it."""

    epoch: int
    text: bytes | None = None


class ShadowLimit(Protocol):
    """The fleet's limit on shadow calls."""

    async def admit_shadow(self, per_minute: int) -> bool:
        """Returns whether another one is allowed in this minute; if so, counts it. Raises `StoreUnavailable`."""


class QualityStore(Protocol):
    """What the fleet knows about its quality, in Redis. Every method raises `StoreUnavailable`."""

    async def read(self, known: int) -> StoredQuality:
        """Returns the stored epoch, and its text unless the reader knows that epoch."""

    async def publish(self, after: int, text: bytes, scopes: Mapping[str, bytes]) -> int | None:
        """Replaces the epoch `after`, and writes the models of scopes, in one step. Returns the new epoch.

        Returns None if another epoch is stored, or if this worker has lost the lease.
        """

    async def of_scopes(self, scopes: Sequence[str]) -> Sequence[bytes | None]:
        """Returns the models of scopes, in order."""

    async def now_ms(self) -> int:
        """Returns Redis's clock."""

    async def served(self) -> Mapping[str, int]:
        """Returns how many answers each tier has ever served."""
