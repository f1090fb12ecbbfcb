"""Values and protocols of the cache's quality: evidence about a candidate, labels, and the policy that serves.

A label says whether a cached answer was right for a later question. Labels come from misses, from hits that are
answered again in the background (shadow calls), and from feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol


class PolicyName(StrEnum):
    """SEMANTIC_CACHE_POLICY: which candidates the semantic tier serves."""

    OBSERVE = "observe"
    FIXED = "fixed"
    GUARDED = "guarded"
    VERIFIED = "verified"


class Verdict(StrEnum):
    """Whether two answers say the same."""

    SAME = "same"
    DIFFERENT = "different"
    UNSURE = "unsure"


LabelSource = Literal["shadow", "miss", "feedback"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a candidate before it is served. Policies learn from it.

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

    `kind`: the tier, `exact`, `semantic` or `stale`. `probability`: with which this observation was sampled; a label of
    a shadow call at a rate of 0.01 stands for 100 hits. `at_ms`: by Redis's clock; 0 before it is stored.
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

    async def pairs(self, limit: int) -> Sequence[LabelledPair]:
        """Returns kept pairs of all scopes."""


@dataclass(frozen=True, slots=True)
class PooledLabel:
    """A label with its scope and tenant, for the fit over all scopes."""

    scope: str
    tenant: str
    label: Label


class Verifier(Protocol):
    """A cross-encoder that reads both questions. `digest` identifies its weights."""

    digest: str

    async def score(self, question: str, candidates: Sequence[str]) -> Sequence[float]:
        """Returns one logit for each candidate. Raises `VerifierUnavailable` at its deadline."""
