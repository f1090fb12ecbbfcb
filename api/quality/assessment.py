"""Decides from the labels what the fleet serves from now on: the models, the estimate, and how far it is tightened.

Pure. One worker runs it for the fleet (see `api.quality.keeper`).

Two tests watch the labels of served answers that came after the last change. One adds up how much more likely each
label is at a high error than at the target, and so sees a sudden fault soon. The other is the estimate: if its interval
lies above the target, the level rises too. It falls by one once labels of what the next level would serve are clearly
good.

Few hits are labeled, but all misses with a candidate are. If more of these candidates are wrong than the model learned
before, the cached answers may have become wrong. Then more hits are labeled, and fewer wrong ones suffice to tighten.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from api.ports.answer_quality import (
    FalseHitRate,
    Label,
    PolicyName,
    PooledLabel,
    QualityChange,
    QualityEvent,
    QualityState,
    TenantLevel,
    Verdict,
)
from api.quality.calibration import (
    Channel,
    Fit,
    Model,
    Observations,
    channel_of,
    has_enough,
    learn,
    learn_scope,
    observations,
)
from api.quality.estimate import (
    BY_MEANING,
    Errors,
    alarm,
    bands,
    by_equal_questions,
    doubtful,
    doubts_since,
    hits_since,
    in_the_field,
    likely_errors,
    overall,
    parts,
    proven,
    samples,
    suspected,
    without_fault,
)
from api.quality.policies import LAST_LEVEL, Published, QualitySettings, target_at, threshold_at

LENT: Final = math.log(20)
"""How much of the alarm the labels of misses add, if they raise it alone."""
MISSES: Final = 1_000
"""The newest labels of misses that can do so."""
PROVABLE: Final = 100
"""Labels that suffice for it, at the default target, if none is wrong."""
MOST_TENANTS: Final = 100
"""Tenants that may be tightened on their own: those with the most wrong hits."""
CALM_MS: Final = 10 * 60 * 1000
"""Least time between two changes, if the second one loosens."""
HISTORY: Final = 50
SCOPES: Final = 50
"""Scopes that get a new model in one round: those with the most new labels."""


class ScopeModel(NamedTuple):
    """The model of a scope. `target`: the error that it aims at."""

    model: Model
    target: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """The result of one round. `scopes`: new models of scopes; `events`: what changed, for the log."""

    published: Published
    scopes: Mapping[str, ScopeModel]
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
    shown = in_the_field(fitting, settings.shown or settings.confusion)
    confusion = in_the_field(fitting, settings.confusion)
    settings = replace(settings, confusion=confusion, shown=shown, watched=by_equal_questions(fitting, confusion))
    channel = channel_of(settings.confusion.of(BY_MEANING))
    if before.state.versions != settings.versions or before.state.policy is not settings.policy:
        before = replace(before, model=None)  # the level stays: what was wrong may still be
    learned_at = partial(_learned, fitting, settings, channel, now_ms)
    usual = [one for one in fitting if not one.label.deviates]  # a variant that errs must not tighten the others
    levels = next_levels(usual, before, settings, now_ms, lambda at: _model(learned_at(at)))
    learned = learned_at(target_at(settings.target, levels.level))
    state = replace(_state(fitting, before, settings, now_ms, served, levels.level), tenants=levels.tenants)
    in_use = learned is not None and learned.from_labels and settings.policy is PolicyName.VERIFIED
    common = [one for one in usual if one.tenant not in before.state.tenants]
    before = _with_settings(before, settings, now_ms)
    is_suspected = _is_suspected(common, before, _watched(settings), settings.target)
    of_variants = _variant_levels(fitting, before, settings, now_ms, lambda at: _model(learned_at(at)))
    state = replace(state, learned=in_use, suspected=is_suspected, variant_levels=of_variants)
    events = list(_events(before.state, state, levels.reasons, now_ms))
    state = replace(state, history=[*before.state.history, *events][-HISTORY:])
    scopes = _scopes(fitting, changed, learned, channel, state, settings.target, now_ms)
    changed_ms = now_ms if levels.level != before.state.level else before.changed_ms
    published = replace(before, state=state, model=_model(learned), changed_ms=changed_ms)
    return Assessment(published, scopes, events)


# -- learning ----------------------------------------------------------------------------------------------------------


class _Learned(NamedTuple):
    """The result of all labels. `from_labels`: there were enough of them; otherwise most of it comes from the prior."""

    fit: Fit
    model: Model
    pool: Observations
    from_labels: bool


def _learned(
    labels: Sequence[PooledLabel], settings: QualitySettings, channel: Channel, now_ms: int, target: float
) -> _Learned | None:
    own = observations([one.label for one in labels], now_ms, [one.tenant for one in labels])
    prior = settings.known_before
    pool = prior.added_to(own, channel) if prior is not None else own
    found = learn(pool, channel, target)
    if found is None:
        return None
    fit, model = found
    return _Learned(fit, replace(model, labels=len(own)), pool, has_enough(own))


def _model(learned: _Learned | None) -> Model | None:
    return learned.model if learned is not None else None


def _scopes(
    labels: Sequence[PooledLabel],
    changed: Counter[str],
    learned: _Learned | None,
    channel: Channel,
    state: QualityState,
    target: float,
    now_ms: int,
) -> dict[str, ScopeModel]:
    """Returns models of the scopes with the most new labels. Bad feedback counts there, and nowhere else.

    `target`: without tightening.
    """
    if learned is None:
        return {}
    chosen = {scope for scope, _ in changed.most_common(SCOPES)}
    of_scope: dict[str, list[Label]] = defaultdict(list)
    targets: dict[str, float] = {}
    for one in labels:
        if one.scope in chosen:
            of_scope[one.scope].append(one.label)
            targets[one.scope] = target_at(target, state.level_of(one.tenant))
    found = {}
    for scope, own in of_scope.items():
        seen = observations(own, now_ms, feedback=True)
        model = learn_scope(learned.fit, learned.pool, seen, channel, targets[scope])
        if model is not None:
            found[scope] = ScopeModel(model, targets[scope])
    return found


# -- the levels --------------------------------------------------------------------------------------------------------

ModelAt = Callable[[float], Model | None]
"""Returns what the labels teach at a target."""


class Levels(NamedTuple):
    """How far the fleet is tightened, and those tenants that are tightened more. `reasons`: of what changed.

    The fleet's reason has no name.
    """

    level: int
    tenants: dict[str, TenantLevel]
    reasons: dict[str, str]


def next_levels(
    labels: Sequence[PooledLabel], before: Published, settings: QualitySettings, now_ms: int, learned: ModelAt
) -> Levels:
    """Returns the levels from now on.

    The wrong hits of one tenant tighten that tenant alone, if the labels of the others speak against a fault from its
    first wrong hit on. If there are too few of them to tell, the whole fleet is tightened.
    """
    level = before.state.level
    if settings.policy is PolicyName.OBSERVE:
        return Levels(0, {}, {})
    own = {name: one for name, one in before.state.tenants.items() if one.level > level}
    common = [one for one in labels if one.tenant not in own]
    found = Levels(level, dict(own), {})
    blamed = _blamed(labels, own, before, settings, now_ms)
    for name in blamed.keys() & own.keys():
        found.tenants[name] = TenantLevel(min(own[name].level + 1, LAST_LEVEL), now_ms)
        found.reasons[name] = blamed[name]
    fresh = blamed.keys() - own.keys()
    others = [one for one in common if one.tenant not in fresh]
    apart = bool(fresh) and _speak_against_a_fault(
        others, [one for one in common if one.tenant in fresh], before, settings
    )
    reason = (
        _fault_in(others if apart else common, before.changed_ms, before, settings, now_ms)
        if level < LAST_LEVEL
        else ""
    )
    if reason:
        found = found._replace(level=level + 1)
        found.reasons[""] = reason
    elif level > 0 and _has_passed(common, before.changed_ms, level, settings, now_ms, learned):
        found = found._replace(level=level - 1)
        found.reasons[""] = "proven"
    for name in fresh if apart or not reason else ():
        found.tenants[name] = TenantLevel(min(level + 1, LAST_LEVEL), now_ms)
        found.reasons[name] = blamed[name]
    for name in own.keys() - blamed.keys():
        of_tenant = [one for one in labels if one.tenant == name]
        if _has_passed(of_tenant, own[name].changed_ms, own[name].level, settings, now_ms, learned):
            found.tenants[name] = TenantLevel(own[name].level - 1, now_ms)
            found.reasons[name] = "proven"
    return _bounded(found)


def _bounded(found: Levels) -> Levels:
    """Drops tenants that the fleet's level covers. If a great many are tightened, the fault is the fleet's."""
    tenants = {name: one for name, one in found.tenants.items() if one.level > found.level}
    if len(tenants) <= MOST_TENANTS or found.level >= LAST_LEVEL:
        return found._replace(tenants=tenants)
    raised = found._replace(level=found.level + 1, reasons={**found.reasons, "": "tenants"})
    return _bounded(raised)


def _blamed(
    labels: Sequence[PooledLabel],
    own: Mapping[str, TenantLevel],
    before: Published,
    settings: QualitySettings,
    now_ms: int,
) -> dict[str, str]:
    """Returns the tenants whose own labels show a fault since their last change, and how."""
    wrong = Counter(
        one.tenant for one in labels if one.label.source == "shadow" and one.label.verdict is Verdict.DIFFERENT
    )
    suspects = {name for name, count in wrong.most_common(MOST_TENANTS) if count > 1}
    of_tenant: dict[str, list[PooledLabel]] = defaultdict(list)
    for one in labels:
        if one.tenant in suspects:
            of_tenant[one.tenant].append(one)
    found = {}
    for name, theirs in of_tenant.items():
        level, since_ms = (own[name].level, own[name].changed_ms) if name in own else (before.state.level, 0)
        if level < LAST_LEVEL:
            reason = _fault_in(theirs, max(since_ms, before.changed_ms), before, settings, now_ms)
            if reason:
                found[name] = reason
    return found


def _speak_against_a_fault(
    others: Sequence[PooledLabel], faulty: Sequence[PooledLabel], before: Published, settings: QualitySettings
) -> bool:
    """Returns whether the labels of others do, from the first wrong hit of the faulty ones on."""
    hits = hits_since(faulty, before.changed_ms)
    began_ms = min((one.at_ms for one in hits if one.verdict is Verdict.DIFFERENT), default=before.changed_ms)
    channel = _watched(settings)
    theirs = hits_since(others, max(before.changed_ms, began_ms - 1))
    if not without_fault(theirs, channel, settings.target):
        return False
    return not _misses_look_faulty(others, before.changed_ms, before.model, channel, settings.target)


def _watched(settings: QualitySettings) -> Channel:
    """Returns the errors that the tests for faults assume. What loosens or teaches a policy assumes the measured ones,
    so no caller can loosen it with questions whose answers differ each time.
    """
    return channel_of((settings.watched or settings.confusion).of(BY_MEANING))


def _fault_in(
    labels: Sequence[PooledLabel], since_ms: int, before: Published, settings: QualitySettings, now_ms: int
) -> str:
    """Returns how the labels since a change show a fault; empty if they do not."""
    channel = _watched(settings)
    hits = hits_since(labels, since_ms)
    lent = lent_by_misses(labels, since_ms, before.model, channel, settings.target)
    if alarm(hits, channel, settings.target, lent):
        return "sudden"
    since = [one for one in labels if one.label.at_ms > since_ms and not one.label.of_same_question]
    found = overall(samples(since, now_ms, unsure=True), settings.watched or settings.confusion, {})
    return "estimate" if found.samples and found.low > settings.target else ""


def _has_passed(
    labels: Sequence[PooledLabel],
    since_ms: int,
    level: int,
    settings: QualitySettings,
    now_ms: int,
    learned: ModelAt,
) -> bool:
    """Returns whether labels since a change show that one level less would be right."""
    if now_ms - since_ms < CALM_MS:
        return False
    since = [one for one in labels if one.label.at_ms > since_ms and not one.label.of_same_question]
    channel = channel_of(settings.confusion.of(BY_MEANING))
    return proven(_would_serve(since, settings, level - 1, learned), channel, settings.target)


def _variant_levels(
    labels: Sequence[PooledLabel], before: Published, settings: QualitySettings, now_ms: int, learned: ModelAt
) -> dict[str, tuple[int, int]]:
    """Returns the level of each variant with another policy or threshold, by its labels alone, and since when."""
    by_variant: dict[str, list[PooledLabel]] = defaultdict(list)
    for one in labels:
        if one.label.deviates and one.label.policy is not PolicyName.OBSERVE:
            by_variant[one.label.variant].append(one)
    levels = {}
    for variant, own in by_variant.items():
        level, since_ms = before.state.variant_levels.get(variant, (0, 0))
        its = replace(settings, policy=own[-1].label.policy)
        now = level
        if level < LAST_LEVEL and _fault_in(own, since_ms, before, its, now_ms):
            now += 1
        elif level > 0 and _has_passed(own, since_ms, level, its, now_ms, learned):
            now -= 1
        levels[variant] = (now, since_ms if now == level else now_ms)
    return levels


def lent_by_misses(
    labels: Sequence[PooledLabel], since_ms: int, model: Model | None, channel: Channel, target: float
) -> float:
    return LENT if _misses_look_faulty(labels, since_ms, model, channel, target) else 0.0


def _misses_look_faulty(
    labels: Sequence[PooledLabel], since_ms: int, model: Model | None, channel: Channel, target: float
) -> bool:
    """Returns whether more candidates of misses are wrong than the model expects, as if the fault were theirs too."""
    if model is None:
        return False
    newest = [
        one.label
        for one in labels[-2 * MISSES :]
        if one.label.source == "miss" and not one.label.evidence.guard and one.label.at_ms > since_ms
    ]
    return doubtful(newest[-MISSES:], model, channel, target)


def _would_serve(since: Sequence[PooledLabel], settings: QualitySettings, level: int, learned: ModelAt) -> list[Label]:
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
        model = learned(target_at(settings.target, lower))
        if model is None:
            return near_enough
        served = [one for one in found if model.risk(one.evidence) <= model.level]
        if len(served) >= PROVABLE:
            break
    return served


# -- when to look more closely -----------------------------------------------------------------------------------------


def _with_settings(before: Published, settings: QualitySettings, now_ms: int) -> Published:
    """Notes when what decides about hits has changed. For a new fleet nothing has."""
    if before.settings == settings.named:
        return before
    return replace(before, settings=settings.named, settings_ms=now_ms if before.settings else 0)


def _is_suspected(labels: Sequence[PooledLabel], before: Published, channel: Channel, target: float) -> bool:
    """Returns whether more hits are to be labeled: after a wrong one, a bad vote, or a change of the settings."""
    lent = lent_by_misses(labels, before.changed_ms, before.model, channel, target)
    doubts = doubts_since(labels, before.changed_ms)
    if suspected(doubts, channel, target, lent):
        return True
    changed_ms = before.settings_ms
    since = [one for one in doubts if one.at_ms > changed_ms]
    return bool(changed_ms) and suspected(since, channel, target, at_first=True)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _errors(settings: QualitySettings) -> Errors:
    """Returns what the comparator's errors on the deployment's answers may be. On simple ones it may make none."""
    most = settings.shown or settings.confusion
    fewest = replace(settings.confusion, called_different=0, in_tiers={})
    return Errors(likely_errors(most, settings.watched or settings.confusion), fewest, most)


def _state(
    labels: Sequence[PooledLabel],
    before: Published,
    settings: QualitySettings,
    now_ms: int,
    served: Mapping[str, float],
    level: int,
) -> QualityState:
    errors = _errors(settings)
    hits = samples(labels, now_ms, unsure=True)
    return QualityState(
        epoch=before.state.epoch,
        at_ms=now_ms,
        policy=settings.policy,
        versions=settings.versions,
        level=level,
        threshold=threshold_at(settings.threshold, level),
        target_error=target_at(settings.target, level),
        rate=overall(hits, errors, served),
        would_serve=overall(_observed(labels, settings, now_ms), errors, {}),
        by_kind=parts(hits, errors, "kind", served),
        by_policy=parts(hits, errors, "policy"),
        by_tenant=parts(hits, errors, "tenant"),
        by_variant=parts([one for one in hits if one.variant], errors, "variant"),
        by_similarity=bands(samples(labels, now_ms, served=False, unsure=True), errors),
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
    return samples(would, now_ms, served=False, unsure=True)


def _events(
    before: QualityState, after: QualityState, reasons: Mapping[str, str], now_ms: int
) -> Iterable[QualityEvent]:
    def event(change: QualityChange, why: str) -> QualityEvent:
        return QualityEvent(now_ms, change, after.level, after.rate, why)

    def moved(former: int, now: int) -> QualityChange:
        return "tightened" if now > former else "loosened"

    if after.level != before.level:
        yield event(moved(before.level, after.level), reasons.get("", ""))
    for name in sorted(reasons.keys() & (before.tenants.keys() | after.tenants.keys())):
        former, now = before.level_of(name), after.level_of(name)
        if now != former:
            rate = after.by_tenant.get(name, FalseHitRate())
            yield QualityEvent(now_ms, moved(former, now), now, rate, reasons[name], name)
    if after.learned != before.learned:
        yield event("learned" if after.learned else "forgot", "")
