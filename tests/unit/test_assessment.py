"""What the fleet does about its labels: learning, tightening, loosening, and what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace

import numpy as np
import orjson
import pytest

from api.ports.answer_quality import (
    Confusion,
    Evidence,
    Label,
    LabelSource,
    PolicyName,
    PooledLabel,
    TenantLevel,
    Verdict,
    Versions,
)
from api.quality.assessment import (
    CALM_MS,
    MOST_TENANTS,
    Assessment,
    assess,
)
from api.quality.calibration import NOTHING as NOTHING_SERVED
from api.quality.calibration import Channel
from api.quality.estimate import HALF_LIFE_MS, proven
from api.quality.keeper import QualityView
from api.quality.policies import LAST_LEVEL, Published, QualitySettings, published_as_json, read_published
from scripts.simulate_quality import Signs, voted_bad, watched

VERSIONS = Versions("e", "", "c")
GUARDED = QualitySettings(PolicyName.GUARDED, 0.92, 0.02, VERSIONS)
VERIFIED = replace(GUARDED, policy=PolicyName.VERIFIED)


def labels(
    count: int,
    wrong: float,
    *,
    source: LabelSource = "shadow",
    similarity: float = 0.95,
    start_ms: int = 1,
    seed: int = 0,
    tenant: str = "t",
) -> list[PooledLabel]:
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        verdict = Verdict.DIFFERENT if random.random() < wrong else Verdict.SAME
        served = source == "shadow"
        evidence = Evidence(similarity, similarity - 0.2)
        made = Label(
            evidence, verdict, source, served, "semantic", PolicyName.GUARDED, VERSIONS, 0.1 if served else 1.0,
            start_ms + number,
        )  # fmt: skip
        found.append(PooledLabel("scope", tenant, made))
    return found


def misses(count: int, seed: int = 0, scope: str = "scope") -> list[PooledLabel]:
    """Labels of misses: the nearer, the more often right."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        similarity = float(random.uniform(0.65, 1.0))
        verdict = Verdict.SAME if random.random() < (similarity - 0.6) * 4 else Verdict.DIFFERENT
        evidence = Evidence(similarity, similarity - 0.2)
        made = Label(evidence, verdict, "miss", False, "semantic", PolicyName.VERIFIED, VERSIONS, 1.0, number + 1)
        found.append(PooledLabel(scope, "t", made))
    return found


NOTHING = Published()
CLEAR = Channel()


def after(
    seen: Iterable[PooledLabel],
    before: Published = NOTHING,
    settings: QualitySettings = GUARDED,
    now_ms: int = 10_000,
) -> Assessment:
    found = list(seen)
    return assess(found, Counter(one.scope for one in found), before, settings, now_ms, {})


def test_a_fault_tightens_by_one_level_and_says_so() -> None:
    found = after(labels(100, 0.1))
    state = found.published.state
    assert (state.level, state.tightened) == (1, True)
    assert state.threshold == pytest.approx(0.94)
    assert [event.change for event in found.events] == ["tightened"]
    assert state.history == found.events
    assert found.published.changed_ms == 10_000


@pytest.mark.slow
def test_a_fault_of_ten_percent_is_seen_within_a_hundred_labels() -> None:
    for number, least in ((50, 24), (100, 36)):
        seen = [after(labels(100, 0.0, seed=99) + labels(number, 0.1, start_ms=500, seed=seed)) for seed in range(40)]
        assert sum(one.published.state.level for one in seen) >= least


def test_one_wrong_label_after_many_right_ones_is_suspected() -> None:
    right = labels(200, 0.0)
    assert not after(right).published.state.suspected
    wrong = labels(1, 1.0, start_ms=500)
    found = after([*right, *wrong]).published.state
    assert (found.suspected, found.level) == (True, 0)
    assert not after([*right, *wrong, *labels(30, 0.0, start_ms=600)]).published.state.suspected


@pytest.mark.parametrize(("kind", "similarity", "level"), [("exact", 1.0, 0), ("stale", 1.0, 0), ("stale", 0.95, 1)])
def test_wrong_answers_to_the_same_question_do_not_tighten(kind: str, similarity: float, level: int) -> None:
    """No level stops them: an expired answer is out of date, whatever the threshold."""
    wrong = [
        replace(one, label=replace(one.label, kind=kind))
        for one in labels(100, 0.5, similarity=similarity)
    ]  # fmt: skip
    assert assess(wrong, Counter(), Published(), GUARDED, 1_000, {}).published.state.level == level


@pytest.mark.slow
def test_an_error_at_half_the_target_rarely_tightens() -> None:
    assert sum(after(labels(500, 0.01, seed=seed)).published.state.level for seed in range(40)) <= 2


@pytest.mark.slow
def test_the_comparators_errors_are_no_fault() -> None:
    noisy = replace(GUARDED, confusion=Confusion(500, 10, 500, 25))
    assert sum(after(labels(300, 0.06, seed=seed), settings=noisy).published.state.level for seed in range(40)) <= 2
    assert after(labels(300, 0.06)).published.state.level == 1


def test_labels_from_before_a_change_do_not_tighten_again() -> None:
    fault = labels(100, 0.1)
    first = after(fault)
    again = after(fault, first.published, now_ms=20_000)
    assert again.published.state.level == 1
    worse = after([*fault, *labels(100, 0.1, start_ms=15_000)], first.published, now_ms=20_000)
    assert worse.published.state.level == 2


def test_the_fleet_loosens_by_one_level_when_labels_prove_it() -> None:
    before = Published(replace(after(labels(100, 0.1)).published.state, level=2), None, 10_000)
    good = labels(150, 0.0, start_ms=20_000)
    assert after(good, before, now_ms=30_000).published.state.level == 2, "not that soon"
    found = after(good, before, now_ms=10_000 + CALM_MS)
    assert found.published.state.level == 1
    assert found.events[0].change == "loosened"
    few = after(labels(30, 0.0, start_ms=20_000), before, now_ms=10_000 + CALM_MS)
    assert few.published.state.level == 2, "too few labels"


def test_a_closed_tier_opens_by_the_labels_of_misses() -> None:
    before = Published(replace(after(labels(100, 0.1)).published.state, level=LAST_LEVEL), None, 10_000)
    near = labels(150, 0.0, source="miss", similarity=0.985, start_ms=20_000)
    assert after(near, before, now_ms=10_000 + CALM_MS).published.state.level == LAST_LEVEL - 1
    far = labels(150, 0.0, source="miss", similarity=0.95, start_ms=20_000)
    assert after(far, before, now_ms=10_000 + CALM_MS).published.state.level == LAST_LEVEL


def test_a_long_fault_does_not_outweigh_the_right_labels_that_follow() -> None:
    before = Published(replace(after(labels(100, 0.1)).published.state, level=LAST_LEVEL), None, 10_000)
    fault = labels(1000, 1.0, source="miss", similarity=0.985, start_ms=20_000)
    right = labels(400, 0.0, source="miss", similarity=0.985, start_ms=30_000)
    assert after([*fault, *right], before, now_ms=10_000 + CALM_MS).published.state.level == LAST_LEVEL - 1
    few = right[:150]
    assert after([*fault, *few], before, now_ms=10_000 + CALM_MS).published.state.level == LAST_LEVEL, "still in doubt"


@pytest.mark.slow
def test_labels_at_twice_the_target_prove_nothing() -> None:
    seen = [[one.label for one in labels(1000, 0.04, seed=seed)] for seed in range(40)]
    assert sum(proven(one, CLEAR, 0.02) for one in seen) <= 2


@pytest.mark.parametrize("days", [30, 360, 600, 1_100])
def test_a_fleet_that_slept_for_long_still_learns(days: int) -> None:
    """Redis keeps labels for as long as new ones come, and few may come for years."""
    found = after([*labels(60, 0.1), *labels(1, 0.0, tenant="other")], now_ms=days * HALF_LIFE_MS).published
    again = read_published(published_as_json(found))
    assert 0 <= again.state.rate.low <= again.state.rate.estimate <= again.state.rate.high <= 1


@pytest.mark.parametrize(("fault", "level"), [(0.0, LAST_LEVEL - 1), (0.1, LAST_LEVEL)])
def test_verified_opens_by_what_the_next_level_that_serves_would_serve(fault: float, level: int) -> None:
    """The strictest levels aim at errors that a thousand labels cannot show, and would serve nothing."""
    state = replace(after(labels(100, 0.1)).published.state, level=LAST_LEVEL, policy=PolicyName.VERIFIED)
    seen = faulty_misses(1000, fault, 20_000)
    found = after(seen, Published(state, None, 10_000), VERIFIED, now_ms=10_000 + CALM_MS).published
    assert found.state.level == level
    assert found.model is not None
    assert found.model.level == NOTHING_SERVED, "and so does the level that it moved to"


def test_feedback_does_not_move_the_fleet() -> None:
    found = after(labels(5000, 1.0, source="feedback"))
    assert found.published.state.level == 0
    before = Published(replace(found.published.state, level=2), None, 1)
    praise = labels(5000, 0.0, source="feedback", start_ms=20_000)
    assert after(praise, before, now_ms=10_000 + CALM_MS).published.state.level == 2


def test_verified_learns_from_misses() -> None:
    found = after(misses(600), settings=VERIFIED)
    assert found.published.model is not None
    assert found.published.state.learned
    assert [event.change for event in found.events] == ["learned"]
    assert set(found.scopes) == {"scope"}


def test_labels_of_other_versions_are_forgotten_at_once() -> None:
    first = after(misses(600), settings=VERIFIED)
    other = replace(VERIFIED, versions=replace(VERSIONS, embedder="new"))
    found = after(misses(600), first.published, other)
    assert found.published.model is None
    assert found.scopes == {}
    assert not found.published.state.learned


@pytest.mark.slow
def test_a_thousand_scopes_of_ten_labels_share_one_model() -> None:
    seen = [one for scope in range(1000) for one in misses(10, scope, f"scope {scope}")]
    found = after(seen, settings=VERIFIED, now_ms=20)
    assert found.published.model is not None
    assert found.published.model.level > 0
    assert found.scopes == {}, "ten labels are too few for a model"


@pytest.mark.slow
def test_the_state_survives_its_json() -> None:
    first = after([*misses(600), *labels(100, 0.1, start_ms=700)], settings=VERIFIED)
    again = read_published(published_as_json(first.published))
    assert published_as_json(again) == published_as_json(first.published)
    assert again.state.rate.samples == 100


# -- sudden faults -----------------------------------------------------------------------------------------------------


def faulty_misses(count: int, fault: float, start_ms: int, seed: int = 0) -> list[PooledLabel]:
    """Labels of misses after a fault: a share of the candidates is wrong for a reason that no evidence shows."""
    random = np.random.default_rng(seed + 1000)
    found = []
    for number, one in enumerate(misses(count, seed + 500)):
        verdict = Verdict.DIFFERENT if random.random() < fault else one.label.verdict
        found.append(replace(one, label=replace(one.label, verdict=verdict, at_ms=start_ms + number)))
    return found


@pytest.mark.slow
def test_misses_that_turn_wrong_raise_the_suspicion_and_alone_do_not_tighten() -> None:
    learned = after(misses(1500))
    assert not learned.published.state.suspected
    usual = [*misses(1500), *faulty_misses(300, 0.0, 2_000)]
    assert not after(usual, learned.published).published.state.suspected
    wrong = [*misses(1500), *faulty_misses(300, 0.1, 2_000)]
    found = after(wrong, learned.published).published.state
    assert (found.suspected, found.level) == (True, 0)


@pytest.mark.slow
def test_after_misses_turned_wrong_fewer_wrong_hits_tighten() -> None:
    learned = after(misses(1500))
    fault = faulty_misses(300, 0.1, 2_000)
    few = labels(40, 0.0, start_ms=3_000) + labels(2, 1.0, start_ms=4_000)
    assert after([*misses(1500), *few], learned.published).published.state.level == 0
    assert after([*misses(1500), *fault, *few], learned.published).published.state.level == 1


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
def test_with_the_default_sampling_a_fault_is_seen_within_500_hits(*, noise: bool) -> None:
    """One hit in a hundred is labeled. The fault shows in the candidates of misses too."""
    signs = Signs(misses=True, spare=False)
    runs = [watched(0.1, seed, 0.01, 5_000, noise=noise, signs=signs, until_first=True) for seed in range(40)]
    hits = [one.tightened[0] if one.tightened else 5_000 for one in runs]
    assert np.quantile(hits, 0.95) <= 500


MEASURED = replace(GUARDED, confusion=Confusion(300, 6, 300, 10))


def equal_questions(count: int, different: float, *, entries: int = 1_000) -> list[PooledLabel]:
    """Labels of equal questions, of whose answers a share is called different."""
    found = labels(count, different, similarity=1.0, seed=7)
    return [
        replace(one, label=replace(one.label, kind="exact", entry=f"entry {number % entries}"))
        for number, one in enumerate(found)
    ]


def test_answers_that_differ_each_time_tighten_nothing() -> None:
    """Where two answers to an equal question are often called different, those to similar ones are too."""
    seen = labels(150, 0.3)
    assert after(seen, settings=MEASURED).published.state.level == 1
    found = after([*equal_questions(150, 0.3), *seen], settings=MEASURED).published.state
    assert found.level == 0
    assert after([*equal_questions(150, 0.03), *seen], settings=MEASURED).published.state.level == 1
    once = equal_questions(150, 1.0, entries=1)
    assert after([*once, *seen], settings=MEASURED).published.state.level == 1, "a cached answer counts once"


def test_a_fault_is_seen_where_answers_differ_each_time() -> None:
    seen = [*equal_questions(150, 0.1), *labels(150, 0.4)]
    assert after(seen, settings=MEASURED).published.state.level == 1


def test_equal_questions_loosen_nothing() -> None:
    """A caller can ask questions whose answers differ each time. That must not loosen the policy."""
    tight = after(labels(100, 0.3), settings=MEASURED).published
    assert tight.state.level == 1
    seen = labels(300, 0.05, similarity=0.99, start_ms=20_000)
    differing = [replace(one, label=replace(one.label, at_ms=20_000)) for one in equal_questions(300, 0.9)]
    now_ms = 20_000 + 2 * CALM_MS
    assert after([*differing, *seen], tight, MEASURED, now_ms).published.state.level == 1
    assert after(labels(300, 0.0, similarity=0.99, start_ms=20_000), tight, MEASURED, now_ms).published.state.level == 0


def test_wrong_answers_in_right_groups_tighten_too() -> None:
    """The answer that went out is wrong, and the others of its group are not: their votes do not hide it."""
    fault = [replace(one, label=replace(one.label, votes=2)) for one in labels(100, 0.1)]
    assert after(fault).published.state.level == 1


@pytest.mark.slow
@pytest.mark.once(reason="a simulation with a seed")
def test_without_a_fault_the_fleet_does_not_tighten() -> None:
    runs = [watched(0.005, seed, 0.01, 5_000, noise=True, signs=Signs(misses=True, spare=False)) for seed in range(4)]
    assert sum(len(one.tightened) for one in runs) == 0
    assert sum(one.sampled for one in runs) / 20_000 < 0.04, "few more hits than one in a hundred are labeled"


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "most"), [(False, 0.045), (True, 0.11)])
def test_without_a_fault_spare_shadow_calls_are_few_and_tighten_nothing(*, noise: bool, most: float) -> None:
    runs = [watched(0.005, seed, 0.01, 5_000, noise=noise) for seed in range(4)]
    assert sum(len(one.tightened) for one in runs) == 0
    assert sum(one.sampled for one in runs) / 20_000 < most


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    ("signs", "share"),
    [(Signs(), 0.5), (Signs(voted=0.05), 0.6), (Signs(changed=True), 0.8)],
    ids=["labels alone", "1 in 20 wrong hits is voted bad", "it begins with a change of the settings"],
)
def test_a_fault_that_shows_in_hits_only_is_seen_within_500(*, signs: Signs, share: float, noise: bool) -> None:
    runs = [watched(0.1, seed, 0.01, 5_000, noise=noise, signs=signs, until_first=True) for seed in range(40)]
    assert sum(bool(one.tightened) and one.tightened[0] <= 500 for one in runs) >= share * len(runs)


def test_after_a_change_of_the_settings_more_hits_are_labeled_until_they_are_right() -> None:
    before = after(labels(50, 0.0)).published
    assert not before.state.suspected, "a new fleet has changed nothing"
    for changed in (replace(GUARDED, threshold=0.9), replace(GUARDED, release="2"), replace(GUARDED, target=0.05)):
        found = after(labels(50, 0.0), before, changed).published
        assert found.state.suspected
        since = labels(40, 0.0, start_ms=found.settings_ms + 1)
        assert after([*labels(50, 0.0), *since[:8]], found, changed).published.state.suspected
        assert not after([*labels(50, 0.0), *since], found, changed).published.state.suspected
    assert not after(labels(50, 0.0), before).published.state.suspected


def test_a_bad_vote_is_a_reason_to_look_and_tightens_nothing() -> None:
    right = labels(100, 0.0)
    votes = [voted_bad(1_000 + number) for number in range(50)]
    found = after([*right, *votes]).published.state
    assert (found.suspected, found.level, found.rate.samples) == (True, 0, 100)
    assert after([*right, votes[0]]).published.state.suspected
    calm = labels(40, 0.0, start_ms=2_000)
    assert not after([*right, *votes, *calm]).published.state.suspected, "one vote of a tenant counts"
    exact = replace(votes[0], label=replace(votes[0].label, kind="exact"))
    assert not after([*right, exact]).published.state.suspected


def test_labels_without_a_verdict_end_a_suspicion() -> None:
    unsure = [replace(one, label=replace(one.label, verdict=Verdict.UNSURE)) for one in labels(250, 0.0, start_ms=9)]
    wrong = labels(1, 1.0)
    assert after([*wrong, *unsure[:100]]).published.state.suspected
    assert not after([*wrong, *unsure]).published.state.suspected


@pytest.mark.parametrize("what", ["embedder", "verifier", "comparator"])
def test_a_change_of_versions_keeps_the_level(what: str) -> None:
    tight = after(labels(100, 0.1)).published
    assert tight.state.level == 1
    other = replace(GUARDED, versions=replace(VERSIONS, **{what: "new"}))
    found = after(labels(100, 0.1), tight, other, now_ms=20_000)
    assert found.published.state.level == 1
    assert found.published.state.threshold == pytest.approx(0.94)
    assert found.events == []
    verified = after(labels(100, 0.1), tight, VERIFIED, now_ms=20_000).published.state
    assert verified.level == 1
    assert verified.target_error == pytest.approx(0.01)


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_the_wrong_hits_of_one_tenant_tighten_no_other() -> None:
    found = after([*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")])
    state = found.published.state
    assert (state.level, state.level_of("fine"), state.level_of("faulty")) == (0, 0, 1)
    assert [(event.change, event.tenant, event.level) for event in found.events] == [("tightened", "faulty", 1)]
    assert not state.tightened
    assert state.threshold == 0.92


def test_a_fault_of_all_tenants_tightens_the_fleet() -> None:
    found = after([*labels(100, 0.1, tenant="one"), *labels(100, 0.1, tenant="other", seed=1)]).published.state
    assert (found.level, found.tenants) == (1, {})


@pytest.mark.parametrize(("others", "start_ms"), [(0, 1), (8, 1), (100, -1000)])
def test_if_the_others_have_too_few_labels_since_the_fault_the_fleet_tightens(others: int, start_ms: int) -> None:
    fault = labels(100, 0.1, tenant="faulty")
    found = after([*labels(others, 0.0, tenant="fine", start_ms=start_ms), *fault]).published.state
    assert (found.level, found.tenants) == (1, {})


def test_a_tightened_tenant_that_stays_wrong_is_tightened_more_and_alone() -> None:
    fine = labels(100, 0.0, tenant="fine")
    first = after([*labels(100, 0.1, tenant="faulty"), *fine])
    again = labels(100, 0.1, tenant="faulty", start_ms=15_000)
    found = after([*labels(100, 0.1, tenant="faulty"), *fine, *again], first.published, now_ms=20_000)
    assert (found.published.state.level, found.published.state.level_of("faulty")) == (0, 2)
    assert not found.published.state.suspected, "the others are not sampled more for it"
    still = after([*labels(100, 0.1, tenant="faulty"), *fine], first.published, now_ms=20_000)
    assert still.published.state.level_of("faulty") == 1, "old labels do not count twice"


def test_a_tenant_loosens_by_its_own_labels_and_no_request_can_hurry_it() -> None:
    first = after([*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")]).published
    praised = labels(500, 0.0, source="feedback", start_ms=20_000, tenant="faulty")
    others = labels(500, 0.0, start_ms=20_000, tenant="fine")
    later = 10_000 + CALM_MS
    assert after([*praised, *others], first, now_ms=later).published.state.level_of("faulty") == 1
    good = labels(150, 0.0, source="miss", similarity=0.95, start_ms=20_000, tenant="faulty")
    assert after(good, first, now_ms=30_000).published.state.level_of("faulty") == 1, "not that soon"
    found = after(good, first, now_ms=later)
    assert found.published.state.tenants == {}
    assert [(event.change, event.tenant, event.level) for event in found.events] == [("loosened", "faulty", 0)]


def test_if_a_great_many_tenants_are_tightened_the_fleet_is() -> None:
    before = after([*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")]).published
    many = {f"tenant {number}": before.state.tenants["faulty"] for number in range(MOST_TENANTS)}
    seen = [*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")]
    kept = replace(before, state=replace(before.state, tenants=many))
    found = after(seen, kept).published.state
    assert (found.level, found.tenants) == (1, {})


def test_the_levels_of_tenants_survive_their_json() -> None:
    first = after([*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")]).published
    assert read_published(published_as_json(first)).state == first.state


def test_the_model_of_a_tightened_tenants_scope_aims_at_half_the_error() -> None:
    own = [replace(one, scope="own", tenant="faulty") for one in misses(600)]
    fault = [replace(one, scope="own") for one in labels(100, 0.1, tenant="faulty", start_ms=700)]
    found = after([*misses(600, 1), *own, *labels(100, 0.0, start_ms=700), *fault], settings=VERIFIED)
    assert found.published.state.level_of("faulty") == 1
    assert {scope: one.target for scope, one in found.scopes.items()} == {"scope": 0.02, "own": 0.01}


def test_a_look_up_follows_its_tenants_level() -> None:
    published = after([*labels(100, 0.1, tenant="faulty"), *labels(100, 0.0, tenant="fine")]).published
    view = QualityView(GUARDED)
    view.adopt(published)
    assert view.by_threshold == 0.92
    assert view.of_tenants == {"faulty": pytest.approx(0.94)}
    assert view.rules("scope", "fine").threshold == 0.92
    assert view.rules("scope", "faulty").threshold == pytest.approx(0.94)
    other = QualityView(replace(GUARDED, versions=replace(VERSIONS, embedder="new")))
    other.adopt(published)
    assert other.of_tenants == view.of_tenants, "a change of embedder does not loosen it"
    last = replace(published.state, tenants={"faulty": TenantLevel(LAST_LEVEL, 1)})
    view.adopt(replace(published, state=last))
    assert view.of_tenants["faulty"] > 1, "nothing is so similar"
    assert view.rules("scope", "faulty").closed


def test_a_verified_tenant_without_a_strict_model_is_served_as_guarded() -> None:
    labelled = [*misses(600), *labels(100, 0.1, tenant="faulty", start_ms=700), *labels(100, 0.0, start_ms=700)]
    published = after(labelled, settings=VERIFIED).published
    view = QualityView(VERIFIED)
    view.adopt(published)
    assert view.rules("scope", "t").verifies
    assert not view.rules("scope", "faulty").verifies
    assert view.rules("scope", "faulty").threshold == pytest.approx(0.94)
    assert published.model is not None
    for target, verifies in ((0.02, False), (0.01, True)):
        said = {"versions": asdict(VERSIONS), "target_error": target, "model": published.model.as_json()}
        view.note("scope", orjson.dumps(said))
        assert view.rules("scope", "faulty").verifies is verifies


# -- variants of experiments ------------------------------------------------------------------------------------------


def of_variant(seen: Iterable[PooledLabel], variant: str, *, deviates: bool = True) -> list[PooledLabel]:
    return [replace(one, label=replace(one.label, variant=variant, deviates=deviates)) for one in seen]


def test_a_variant_that_errs_is_tightened_alone_and_another_that_is_right_is_not() -> None:
    wrong = of_variant(labels(200, 0.3, seed=1), "trial/lower")
    right = of_variant(labels(200, 0.0, seed=2), "trial/higher")
    found = after([*labels(200, 0.0, seed=3), *wrong, *right]).published.state
    assert found.level == 0
    assert {name: level for name, (level, _) in found.variant_levels.items()} == {"trial/lower": 1, "trial/higher": 0}
    assert found.by_variant["trial/lower"].low > 0.02 > found.by_variant["trial/higher"].low
    assert found.rate.estimate > 0.05, "it stays a part of what the fleet serves"


def test_a_variant_with_the_fleets_rules_tightens_the_fleet() -> None:
    wrong = of_variant(labels(200, 0.3, seed=1), "trial/other-model", deviates=False)
    found = after(wrong).published.state
    assert (found.level, dict(found.variant_levels)) == (1, {})


def test_a_variants_level_goes_on_from_round_to_round() -> None:
    first = after(of_variant(labels(200, 0.3, seed=1), "trial/lower"))
    level, since_ms = first.published.state.variant_levels["trial/lower"]
    assert (level, since_ms) == (1, 10_000)
    read = read_published(published_as_json(first.published))
    assert list(read.state.variant_levels["trial/lower"]) == [1, 10_000]
    assert read.state.by_variant == first.published.state.by_variant
    again = of_variant(labels(200, 0.3, start_ms=11_000, seed=2), "trial/lower")
    seen = [*of_variant(labels(200, 0.3, seed=1), "trial/lower"), *again]
    assert after(seen, read, now_ms=20_000).published.state.variant_levels["trial/lower"][0] == 2
