"""Decides from the labels what the fleet serves from now on: the models, the estimate, and how far it is tightened.

Pure. One worker runs it for the fleet (see `api.quality.keeper`).

Two tests watch the labels of served answers that came after the last change. One adds up how much more likely each
label is at a high error than at the target, and so sees a sudden fault soon. The other is the estimate: if its
interval lies above the target, the fleet tightens too. It loosens by one level once labels of what the next level
would serve are clearly good.

Few hits are labeled, but all misses with a candidate are. If more of these candidates are wrong than the model learned
before, the cached answers may have become wrong. Then more hits are labeled, and fewer wrong ones suffice to tighten.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from api.ports.answer_quality import (
    Confusion,
    FalseHitRate,
    Label,
    PolicyName,
    PooledLabel,
    QualityChange,
    QualityEvent,
    QualityState,
    SimilarityBand,
    Verdict,
    Versions,
)
from api.quality.calibration import (
    Channel,
    Fit,
    Model,
    Observations,
    Prior,
    channel_of,
    has_enough,
    learn,
    learn_scope,
    observations,
    read_model,
)
from api.quality.estimate import bands, in_the_field, overall, parts, samples
from api.quality.policies import LAST_LEVEL, target_at, threshold_at
from api.values import known

FAULT: Final = 5.0
"""A sudden fault is this many times the target."""
ALARM: Final = math.log(100)
"""The log of how much more likely the labels must be at a fault than at the target."""
SUSPICION: Final = 0.5
"""The same, from which more hits are sampled."""
DISMISSED: Final = math.log(2)
"""How much more likely the labels since then must be at the target, until the suspicion ends."""
LENT: Final = math.log(20)
"""How much of the alarm the labels of misses add, if they raise it alone."""
MISSES: Final = 1_000
"""The newest labels of misses that can do so."""
PLAIN_RISK: Final = 0.2
"""Only candidates that were right more often than this allows: others say little about a fault."""
PROOF: Final = math.log(20)
"""The same for loosening: at half the target, against twice the target."""
PROVABLE: Final = 100
"""Labels that suffice for it, at the default target, if none is wrong."""
BY_MEANING: Final = {"semantic": 1.0}
"""The tier whose errors the policies learn from and tighten for."""
CALM_MS: Final = 10 * 60 * 1000
"""Least time between two changes, if the second one loosens."""
HISTORY: Final = 50
SCOPES: Final = 50
"""Scopes that get a new model in one round: those with the most new labels."""


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """The settings that the keeper needs. `versions`: of this worker's embedder, verifier and comparator.

    `prior`: of the verifier that ships.
    """

    policy: PolicyName
    threshold: float
    target: float
    versions: Versions
    confusion: Confusion = field(default_factory=Confusion)
    prior: Prior | None = None

    @property
    def known_before(self) -> Prior | None:
        """The prior, if it holds for the versions."""
        return self.prior if self.prior is not None and self.prior.fits(self.versions) else None


@dataclass(frozen=True, slots=True)
class Published:
    """What all workers follow. `model`: for scopes without one. `changed_ms`: when the level last changed.

    `served`: answers that each tier has served lately. `totals`: all that it has served, when this was written.
    """

    state: QualityState = field(default_factory=QualityState)
    model: Model | None = None
    changed_ms: int = 0
    served: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assessment:
    """The result of one round. `scopes`: new models of scopes; `events`: what changed, for the log."""

    published: Published
    scopes: Mapping[str, Model]
    events: Sequence[QualityEvent] = ()


def assess(
    labels: Sequence[PooledLabel],
    changed: Counter[str],
    before: Published,
    settings: QualitySettings,
    now_ms: int,
    served: Mapping[str, float],
) -> Assessment:
    """Runs one round. `labels`: all that are kept, oldest first. `changed`: how many new labels each scope has.

    `served`: how many answers each tier has served lately.
    """
    fitting = [one for one in labels if one.label.versions == settings.versions]
    settings = replace(settings, confusion=in_the_field(fitting, settings.confusion))
    channel = channel_of(settings.confusion.of(BY_MEANING))
    if before.state.versions != settings.versions or before.state.policy is not settings.policy:
        before = replace(before, model=None)  # the level stays: what was wrong may still be
    lent = LENT if _misses_look_faulty(fitting, before, channel, settings.target) else 0.0
    level, reason = _next_level(fitting, before, settings, now_ms, lent)
    learned = _learned(fitting, settings, channel, target_at(settings.target, level), now_ms)
    state = _state(fitting, before, settings, now_ms, served, level)
    in_use = learned is not None and learned.from_labels and settings.policy is PolicyName.VERIFIED
    is_suspected = suspected(_hits(fitting, before), channel, settings.target, lent)
    state = replace(state, learned=in_use, suspected=is_suspected)
    events = list(_events(before.state, state, reason, now_ms))
    state = replace(state, history=[*before.state.history, *events][-HISTORY:])
    scopes = _scopes(fitting, changed, learned, channel, target_at(settings.target, level), now_ms)
    changed_ms = now_ms if level != before.state.level else before.changed_ms
    model = learned.model if learned else None
    return Assessment(replace(before, state=state, model=model, changed_ms=changed_ms), scopes, events)


# -- learning ----------------------------------------------------------------------------------------------------------


class _Learned(NamedTuple):
    """The result of all labels. `from_labels`: there were enough of them; otherwise most of it comes from the prior."""

    fit: Fit
    model: Model
    pool: Observations
    from_labels: bool


def _learned(
    labels: Sequence[PooledLabel], settings: QualitySettings, channel: Channel, target: float, now_ms: int
) -> _Learned | None:
    own = observations([one.label for one in labels], now_ms, [one.tenant for one in labels])
    prior = settings.known_before
    pool = prior.added_to(own, channel) if prior is not None else own
    found = learn(pool, channel, target)
    if found is None:
        return None
    fit, model = found
    return _Learned(fit, replace(model, labels=len(own)), pool, has_enough(own))


def _scopes(
    labels: Sequence[PooledLabel],
    changed: Counter[str],
    learned: _Learned | None,
    channel: Channel,
    target: float,
    now_ms: int,
) -> dict[str, Model]:
    """Returns models of the scopes with the most new labels. Bad feedback counts there, and nowhere else."""
    if learned is None:
        return {}
    chosen = {scope for scope, _ in changed.most_common(SCOPES)}
    of_scope: dict[str, list[Label]] = defaultdict(list)
    for one in labels:
        if one.scope in chosen:
            of_scope[one.scope].append(one.label)
    models = {
        scope: learn_scope(learned.fit, learned.pool, observations(own, now_ms, feedback=True), channel, target)
        for scope, own in of_scope.items()
    }
    return {scope: model for scope, model in models.items() if model is not None}


# -- the level ---------------------------------------------------------------------------------------------------------


def _next_level(
    labels: Sequence[PooledLabel], before: Published, settings: QualitySettings, now_ms: int, lent: float
) -> tuple[int, str]:
    """Returns the level from now on, and the reason for a change. `lent`: what the labels of misses add to an alarm."""
    level = before.state.level
    if settings.policy is PolicyName.OBSERVE:
        return 0, ""
    since = [one for one in labels if one.label.at_ms > before.changed_ms and not one.label.of_same_question]
    channel = channel_of(settings.confusion.of(BY_MEANING))
    if level < LAST_LEVEL:
        if alarm(_hits(labels, before), channel, settings.target, lent):
            return level + 1, "sudden"
        found = overall(samples(since, now_ms), settings.confusion, {})
        if found.samples and found.low > settings.target:
            return level + 1, "estimate"
    if level > 0 and now_ms - before.changed_ms >= CALM_MS:
        would = _would_serve(labels, since, settings, channel, level - 1, now_ms)
        if proven(would, channel, settings.target):
            return level - 1, "proven"
    return level, ""


def _hits(labels: Sequence[PooledLabel], before: Published) -> list[Label]:
    """Returns the labels of answers served since the last change, without equal questions: no level stops them."""
    return [
        one.label
        for one in labels
        if one.label.served
        and one.label.source == "shadow"
        and not one.label.of_same_question
        and one.label.at_ms > before.changed_ms
    ]


def _misses_look_faulty(labels: Sequence[PooledLabel], before: Published, channel: Channel, target: float) -> bool:
    """Returns whether more candidates of misses are wrong than the model expects, as if the fault were theirs too."""
    model = before.model
    if model is None:
        return False
    newest = [
        one.label
        for one in labels[-2 * MISSES :]
        if one.label.source == "miss" and not one.label.evidence.guard and one.label.at_ms > before.changed_ms
    ]
    return doubtful(newest[-MISSES:], model, channel, target)


def doubtful(misses: Sequence[Label], model: Model, channel: Channel, target: float) -> bool:
    """Returns whether the newest labels of misses raise an alarm. `model`: what was known before."""
    risks = [(one, risk) for one in misses if (risk := model.estimate(one.evidence)) <= PLAIN_RISK]
    errors = [(risk + (1 - risk) * _fault(target), risk) for _, risk in risks]
    return _now(_ratios([one for one, _ in risks], channel, errors)) >= ALARM


def alarm(labels: Iterable[Label], channel: Channel, target: float, lent: float = 0.0) -> bool:
    """Returns whether labels, oldest first, show a fault. `lent`: what others add to what the newest ones show."""
    sums = list(_sums(_faults(list(labels), channel, target)))
    return bool(sums) and (max(sums) >= ALARM or sums[-1] + lent >= ALARM)


def suspected(labels: Iterable[Label], channel: Channel, target: float, lent: float = 0.0) -> bool:
    """Returns whether the newest labels look like a fault, as after a single wrong one.

    The suspicion stays until labels speak against it. Otherwise a few right ones would end it, even during a fault.
    """
    total, is_suspected = 0.0, False
    for ratio in _faults(list(labels), channel, target):
        total = total + ratio if is_suspected else max(0.0, total + ratio)
        if total <= -DISMISSED:
            total, is_suspected = 0.0, False
        is_suspected = is_suspected or total >= SUSPICION
    return is_suspected or total + lent >= SUSPICION


def proven(labels: Iterable[Label], channel: Channel, target: float) -> bool:
    """Returns whether labels, oldest first, show that the error is at most half the target: a sequential test.

    What speaks against it counts up to `PROOF`. Otherwise the labels of a long fault would outweigh all later ones.
    """
    seen, total = list(labels), 0.0
    for ratio in _ratios(seen, channel, [(target / 2, min(2 * target, 0.5))] * len(seen)):
        total = max(-PROOF, total + ratio)
    return total >= PROOF


def _fault(target: float) -> float:
    return min(FAULT * target, 0.5)


def _faults(labels: Sequence[Label], channel: Channel, target: float) -> list[float]:
    return _ratios(labels, channel, [(_fault(target), target)] * len(labels))


def _sums(ratios: Iterable[float]) -> Iterable[float]:
    """Yields the cumulative sum after each ratio, never below 0."""
    total = 0.0
    for ratio in ratios:
        total = max(0.0, total + ratio)
        yield total


def _now(ratios: Iterable[float]) -> float:
    return next(iter(deque(_sums(ratios), maxlen=1)), 0.0)


def _ratios(labels: Sequence[Label], channel: Channel, errors: Sequence[tuple[float, float]]) -> list[float]:
    """Returns the log of how much more likely each label is at the first error than at the second one.

    The verdict on the answer itself counts, not the votes: the group may be right where the answer is wrong.
    """
    one, other = np.array(errors, dtype=np.float64).reshape(-1, 2).T
    first, second = (channel.called_different + channel.clarity * error for error in (one, other))
    of_wrong, of_right = np.log(first / second), np.log((1 - first) / (1 - second))
    wrong = np.array([label.verdict is Verdict.DIFFERENT for label in labels], dtype=bool)
    unsure = np.array([label.verdict is Verdict.UNSURE for label in labels], dtype=bool)
    return list(map(float, np.where(unsure, 0.0, np.where(wrong, of_wrong, of_right))))


def _would_serve(
    labels: Sequence[PooledLabel],
    since: Sequence[PooledLabel],
    settings: QualitySettings,
    channel: Channel,
    level: int,
    now_ms: int,
) -> list[Label]:
    """Returns the labels since the last change of what would be served at a level, hits and misses.

    Few labels cannot show the small error that a high level aims at, so a model may serve next to nothing there. Then
    the next lower level counts that serves enough to prove something. Otherwise the fleet would never loosen.
    """
    found = [one.label for one in since if one.label.source != "feedback" and not one.label.evidence.guard]
    near_enough = [one for one in found if one.evidence.similarity >= threshold_at(settings.threshold, level)]
    if settings.policy is not PolicyName.VERIFIED:
        return near_enough
    served: list[Label] = []
    for lower in range(level, -1, -1):
        learned = _learned(labels, settings, channel, target_at(settings.target, lower), now_ms)
        if learned is None:
            return near_enough
        served = [one for one in found if learned.model.risk(one.evidence) <= learned.model.level]
        if len(served) >= PROVABLE:
            break
    return served


# -- what is shown -----------------------------------------------------------------------------------------------------


def _state(
    labels: Sequence[PooledLabel],
    before: Published,
    settings: QualitySettings,
    now_ms: int,
    served: Mapping[str, float],
    level: int,
) -> QualityState:
    confusion = settings.confusion
    hits = samples(labels, now_ms)
    return QualityState(
        epoch=before.state.epoch,
        at_ms=now_ms,
        policy=settings.policy,
        versions=settings.versions,
        level=level,
        threshold=threshold_at(settings.threshold, level),
        target_error=target_at(settings.target, level),
        rate=overall(hits, confusion, served),
        would_serve=overall(_observed(labels, settings, now_ms), confusion, {}),
        by_kind=parts(hits, confusion, "kind", served),
        by_policy=parts(hits, confusion, "policy"),
        by_tenant=parts(hits, confusion, "tenant"),
        by_similarity=bands(samples(labels, now_ms, served=False), confusion),
        labels=dict(Counter(one.label.source for one in labels)),
        unsure=sum(one.label.verdict is Verdict.UNSURE for one in labels),
    )


def _observed(labels: Sequence[PooledLabel], settings: QualitySettings, now_ms: int) -> Any:
    """Returns the samples of what `observe` would have served."""
    would = [
        one
        for one in labels
        if one.label.policy is PolicyName.OBSERVE
        and not one.label.evidence.guard
        and one.label.evidence.similarity >= settings.threshold
    ]
    return samples(would, now_ms, served=False)


def _events(before: QualityState, after: QualityState, reason: str, now_ms: int) -> Iterable[QualityEvent]:
    def event(change: QualityChange, why: str) -> QualityEvent:
        return QualityEvent(now_ms, change, after.level, after.rate, why)

    if after.level != before.level:
        yield event("tightened" if after.level > before.level else "loosened", reason)
    if after.learned != before.learned:
        yield event("learned" if after.learned else "forgot", "")


# -- as JSON -----------------------------------------------------------------------------------------------------------


def published_as_json(published: Published) -> bytes:
    """Returns what `read_published` reads."""
    model = published.model.as_json() if published.model is not None else None
    return orjson.dumps({**asdict(replace(published, model=None)), "model": model})


def read_published(text: bytes) -> Published:
    """Reads what the keeper has written. Raises `ValueError`, `TypeError` and `KeyError` for something else."""
    said = orjson.loads(text)
    state = said["state"]
    model = read_model(said["model"]) if said["model"] is not None else None
    return Published(_read_state(state), model, int(said["changed_ms"]), said["served"], said["totals"])


def _read_state(said: Mapping[str, Any]) -> QualityState:
    rates = {name: FalseHitRate(**said[name]) for name in ("rate", "would_serve")}
    by_parts = {
        name: {part: FalseHitRate(**rate) for part, rate in said[name].items()}
        for name in ("by_kind", "by_policy", "by_tenant")
    }
    similar = [SimilarityBand(**{**band, "rate": FalseHitRate(**band["rate"])}) for band in said["by_similarity"]]
    history = [QualityEvent(**{**event, "rate": FalseHitRate(**event["rate"])}) for event in said["history"]]
    named = {"policy": PolicyName(said["policy"]), "versions": Versions(**said["versions"])}
    fields = {**said, **rates, **by_parts, **named, "by_similarity": similar, "history": history}
    return known(QualityState, fields)
