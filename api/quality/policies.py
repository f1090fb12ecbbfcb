"""Decides which candidate is served: the policies `observe`, `fixed`, `guarded` and `verified`. Pure.

- `fixed`: the nearest candidate from the threshold up.
- `guarded`: the same, if no guard objects.
- `verified`: the nearest candidate that no guard objects to, if the risk that it is wrong is low enough. The risk is
  learned from labels. Without a model it decides as `guarded`.
- `observe`: decides as `guarded` and serves nothing.

Only the settings and the fleet's state say which policy holds. No request can change it. One worker publishes the state
for all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import orjson

from api.ports.answer_quality import (
    Confusion,
    FalseHitRate,
    PolicyDecision,
    PolicyName,
    PolicyOutcome,
    QualityEvent,
    QualityState,
    SimilarityBand,
    TenantLevel,
    Versions,
)
from api.quality.calibration import Model, Prior, read_model
from api.quality.evidence import NearEntry, evidence_of
from api.values import known

CANDIDATES_FROM: Final = 0.6
"""The lowest cosine of a candidate of the policy `verified`."""
LAST_LEVEL: Final = 4
"""The level at which the semantic tier is closed."""
EXPLORED: Final = 0.1
"""The probability to explore a candidate whose risk is just at the level. It falls with the square of the risk."""
RAISED, MOST = 20, 0.25
"""How many times as many hits are sampled while the fleet's error is in doubt, and the highest such rate."""
SUSPECTED: Final = 0.5
"""The share of hits that is sampled while the newest labels look like a fault, if the setting is not 0."""
SPARE_TIMES: Final = 3
"""How many times as many semantic hits are sampled while the fleet makes few shadow calls."""
SPARE_PART: Final = 3
"""These additional samples end after one part in so many of the shadow calls that a minute allows."""


def threshold_at(threshold: float, level: int) -> float:
    """Returns the cosine from which a tightened fleet serves: closer to 1 with each level."""
    return threshold + (1 - threshold) * min(level, LAST_LEVEL - 1) / LAST_LEVEL


def target_at(target: float, level: int) -> float:
    """Returns the error that a tightened fleet aims at: half with each level."""
    return target * 0.5 ** min(level, LAST_LEVEL)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is in force for a scope. `threshold`: at this level. `model`: of the scope; None without enough labels.

    `scored`: the model needs the verifier's score.
    """

    policy: PolicyName = PolicyName.GUARDED
    threshold: float = 0.92
    level: int = 0
    model: Model | None = None
    scored: bool = False

    @property
    def closed(self) -> bool:
        """Whether the semantic tier serves nothing."""
        return self.level >= LAST_LEVEL

    @property
    def verifies(self) -> bool:
        """Whether a model decides."""
        return self.policy is PolicyName.VERIFIED and self.model is not None


def decide(near: Sequence[NearEntry], usable: Collection[int], rules: Rules, chance: float = 1.0) -> PolicyDecision:
    """Decides about a question. `near`: the entries that the search found, nearest first.

    `usable`: the indexes of those that are young enough to be served. `chance`: a random number from 0 to 1 that
    decides whether to explore; 1 never explores.
    """
    if rules.policy is PolicyName.OBSERVE:
        found = decide(near, usable, replace(rules, policy=PolicyName.GUARDED))
        outcome = PolicyOutcome.WOULD_SERVE if found.outcome is PolicyOutcome.SERVED else found.outcome
        return replace(found, policy=rules.policy, outcome=outcome)
    if rules.closed:
        return _refused(rules, "tightened")
    if rules.verifies:
        return _verified(near, usable, rules, chance)
    return _by_threshold(near, usable, rules)


def decisions(near: Sequence[NearEntry], usable: Collection[int], rules: Rules) -> dict[PolicyName, PolicyDecision]:
    """Returns what each policy would decide. `near` must have the verdicts of the guards."""
    return {policy: decide(near, usable, replace(rules, policy=policy)) for policy in PolicyName}


def _by_threshold(near: Sequence[NearEntry], usable: Collection[int], rules: Rules) -> PolicyDecision:
    high_enough = [index for index, one in enumerate(near) if one.similarity >= rules.threshold]
    if not high_enough:
        return _refused(rules, "threshold")
    guarded = rules.policy is not PolicyName.FIXED
    allowed = [index for index in high_enough if not (guarded and near[index].guard)]
    if not allowed:
        return _refused(rules, f"guard: {near[high_enough[0]].guard}")
    young = [index for index in allowed if index in usable]
    if not young:
        return _refused(rules, "age")
    return PolicyDecision(rules.policy, PolicyOutcome.SERVED, young[0])


def _verified(near: Sequence[NearEntry], usable: Collection[int], rules: Rules, chance: float) -> PolicyDecision:
    assert rules.model is not None, "a model decides"
    candidates = [index for index, one in enumerate(near) if one.similarity >= CANDIDATES_FROM]
    allowed = [index for index in candidates if not near[index].guard]
    young = [index for index in allowed if index in usable]
    if not young:
        reason = "age" if allowed else f"guard: {near[candidates[0]].guard}" if candidates else "threshold"
        return _refused(rules, reason)
    index, level = young[0], rules.model.level
    if rules.scored and near[index].verifier is None:
        return _refused(rules, "verifier")
    risk = rules.model.risk(evidence_of(near, index))
    if risk > level:
        return PolicyDecision(rules.policy, PolicyOutcome.REFUSED, None, "risk", error=risk, limit=level)
    explored = EXPLORED * (risk / level) ** 2
    if chance < explored:
        return PolicyDecision(rules.policy, PolicyOutcome.EXPLORED, index, "explored", explored, risk, level)
    return PolicyDecision(rules.policy, PolicyOutcome.SERVED, index, "", 1 - explored, risk, level)


def _refused(rules: Rules, reason: str) -> PolicyDecision:
    return PolicyDecision(rules.policy, PolicyOutcome.REFUSED, None, reason)


def sampling_rate(base: float, state: QualityState) -> float:
    """Returns the share of semantic hits to sample: more while the error may be too high, or the fleet is tightened.

    A small sample would take long to confirm a fault, and to show that it has passed.
    """
    if base and state.suspected:
        return max(base, SUSPECTED)
    is_in_doubt = state.rate.samples > 0 and state.rate.estimate > state.target_error
    return max(base, min(MOST, RAISED * base)) if is_in_doubt or state.tightened else base


def spare_rate(base: float, state: QualityState) -> float:
    """Returns the share of semantic hits to sample while the fleet makes few shadow calls.

    A fleet with few hits gets few labels, and would wait long for the first one that shows a fault.
    """
    return max(sampling_rate(base, state), min(MOST, SPARE_TIMES * base))


# -- what all workers follow -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """The settings that the keeper needs. `versions`: of this worker's embedder, verifier and comparator.

    `confusion`: the comparator's errors that decisions assume. Too few of them make the fleet careful. `shown`: those
    that the figures it shows are corrected for; None: the same. `prior`: of the verifier that ships. `release`: of this
    worker. `watched`: the errors that the tests for faults assume; None: the same as decisions.
    """

    policy: PolicyName
    threshold: float
    target: float
    versions: Versions
    confusion: Confusion = field(default_factory=Confusion)
    prior: Prior | None = None
    shown: Confusion | None = None
    release: str = ""
    watched: Confusion | None = None

    @property
    def named(self) -> str:
        """Names what decides about hits: the release, and these settings."""
        versions = self.versions
        parts = (self.release, self.policy, self.threshold, self.target, versions.embedder, versions.verifier)
        return " ".join(map(str, parts))

    @property
    def known_before(self) -> Prior | None:
        """The prior, if it holds for the versions."""
        return self.prior if self.prior is not None and self.prior.fits(self.versions) else None


@dataclass(frozen=True, slots=True)
class Published:
    """What all workers follow. `model`: for scopes without one. `changed_ms`: when the level last changed.

    `served`: answers that each tier has served lately. `totals`: all that it has served, when this was written.
    `settings`: what decides about hits (`QualitySettings.named`), and `settings_ms`: since when, 0 if always.
    """

    state: QualityState = field(default_factory=QualityState)
    model: Model | None = None
    changed_ms: int = 0
    served: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    settings: str = ""
    settings_ms: int = 0


def published_as_json(published: Published) -> bytes:
    """Returns what `read_published` reads."""
    model = published.model.as_json() if published.model is not None else None
    return orjson.dumps({**asdict(replace(published, model=None)), "model": model})


def read_published(text: bytes) -> Published:
    """Reads what the keeper has written. Raises `ValueError`, `TypeError` and `KeyError` for something else."""
    said = orjson.loads(text)
    state = said["state"]
    model = read_model(said["model"]) if said["model"] is not None else None
    since = str(said.get("settings", "")), int(said.get("settings_ms", 0))
    return Published(_read_state(state), model, int(said["changed_ms"]), said["served"], said["totals"], *since)


def _read_state(said: Mapping[str, Any]) -> QualityState:
    rates = {name: FalseHitRate(**said[name]) for name in ("rate", "would_serve")}
    by_parts = {
        name: {part: FalseHitRate(**rate) for part, rate in said.get(name, {}).items()}
        for name in ("by_kind", "by_policy", "by_tenant", "by_variant")
    }
    similar = [SimilarityBand(**{**band, "rate": FalseHitRate(**band["rate"])}) for band in said["by_similarity"]]
    history = [QualityEvent(**{**event, "rate": FalseHitRate(**event["rate"])}) for event in said["history"]]
    tenants = {name: TenantLevel(**one) for name, one in said.get("tenants", {}).items()}
    named = {"tenants": tenants, "policy": PolicyName(said["policy"]), "versions": Versions(**said["versions"])}
    fields = {**said, **rates, **by_parts, **named, "by_similarity": similar, "history": history}
    return known(QualityState, fields)
