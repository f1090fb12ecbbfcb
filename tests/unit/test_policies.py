"""Which candidate each policy serves."""

from __future__ import annotations

import pytest

from api.ports.answer_quality import PolicyDecision, PolicyName, PolicyOutcome
from api.quality.calibration import FEATURES, Model
from api.quality.evidence import NearEntry
from api.quality.policies import LAST_LEVEL, Rules, decide, decisions, target_at, threshold_at

ZERO = (0.0,) * len(FEATURES)


def model(level: float, slope: float = 4.0) -> Model:
    """Risk falls with similarity: at cosine .8 it is .5."""
    return Model((0.0, slope, *ZERO[2:]), (ZERO,) * len(FEATURES), level)


def near(*entries: tuple[float, str]) -> list[NearEntry]:
    return [NearEntry(similarity, str(index), guard) for index, (similarity, guard) in enumerate(entries)]


def decided(policy: PolicyName, found: list[NearEntry], **rules: object) -> PolicyDecision:
    return decide(found, range(len(found)), Rules(policy, **rules))  # type: ignore[arg-type]


NUMBERS = near((0.99, "numbers"), (0.95, ""), (0.9, ""))


def test_fixed_ignores_guards_and_guarded_does_not() -> None:
    assert decided(PolicyName.FIXED, NUMBERS).index == 0
    assert decided(PolicyName.GUARDED, NUMBERS).index == 1


def test_observe_says_what_guarded_would_serve_and_serves_nothing() -> None:
    found = decided(PolicyName.OBSERVE, NUMBERS)
    assert (found.outcome, found.index) == (PolicyOutcome.WOULD_SERVE, 1)
    assert decided(PolicyName.OBSERVE, near((0.9, ""))).outcome is PolicyOutcome.REFUSED


def test_verified_without_a_model_decides_as_guarded() -> None:
    assert decided(PolicyName.VERIFIED, NUMBERS).index == 1
    assert decided(PolicyName.VERIFIED, near((0.9, ""))).outcome is PolicyOutcome.REFUSED


def test_verified_serves_up_to_the_level_whatever_the_threshold() -> None:
    found = decided(PolicyName.VERIFIED, near((0.9, "")), model=model(0.2))
    assert (found.outcome, found.index) == (PolicyOutcome.SERVED, 0)
    assert found.error == pytest.approx(0.1192, abs=1e-3)
    assert found.limit == 0.2
    assert decided(PolicyName.VERIFIED, near((0.95, "")), model=model(0.01)).reason == "risk"


def test_guards_veto_in_verified_too() -> None:
    found = decided(PolicyName.VERIFIED, near((0.999, "negation")), model=model(0.9))
    assert (found.outcome, found.reason) == (PolicyOutcome.REFUSED, "guard: negation")


def test_two_near_answers_are_refused_where_one_is_served() -> None:
    margin = Model((-2.0, 0.0, 8.0, 0.0, 0.0, 0.0), (ZERO,) * len(FEATURES), 0.1)
    alone = [NearEntry(0.9, "a"), NearEntry(0.88, "a"), NearEntry(0.6, "b")]
    between = [NearEntry(0.9, "a"), NearEntry(0.88, "b"), NearEntry(0.6, "b")]
    assert decided(PolicyName.VERIFIED, alone, model=margin).outcome is PolicyOutcome.SERVED
    assert decided(PolicyName.VERIFIED, between, model=margin).outcome is PolicyOutcome.REFUSED


def test_a_candidate_near_the_level_is_explored_by_chance() -> None:
    found = near((0.9, ""))
    rules = Rules(PolicyName.VERIFIED, model=model(0.12))
    explored = decide(found, [0], rules, chance=0.05)
    assert (explored.outcome, explored.index) == (PolicyOutcome.EXPLORED, 0)
    assert explored.probability == pytest.approx(0.1 * (0.1192 / 0.12) ** 2, rel=1e-2)
    assert decide(found, [0], rules, chance=0.5).outcome is PolicyOutcome.SERVED
    sure = decide(near((1.0, "")), [0], rules, chance=0.05)
    assert sure.outcome is PolicyOutcome.SERVED, "far from the level there is little to learn"


def test_without_the_verifiers_score_a_model_that_needs_it_serves_nothing() -> None:
    rules = Rules(PolicyName.VERIFIED, model=model(0.5), scored=True)
    assert decide(near((0.95, "")), [0], rules).reason == "verifier"
    assert decide([NearEntry(0.95, "a", "", 3.0)], [0], rules).outcome is PolicyOutcome.SERVED


@pytest.mark.parametrize("policy", PolicyName)
def test_what_is_too_old_is_not_served(policy: PolicyName) -> None:
    found = decide(near((0.99, ""), (0.98, "")), [1], Rules(policy, model=model(0.9)))
    assert found.index == 1
    assert decide(near((0.99, "")), [], Rules(policy, model=model(0.9))).reason == "age"


@pytest.mark.parametrize("policy", [policy for policy in PolicyName if policy is not PolicyName.OBSERVE])
def test_at_the_last_level_the_semantic_tier_is_closed(policy: PolicyName) -> None:
    found = decided(policy, near((1.0, "")), level=LAST_LEVEL, model=model(0.9))
    assert (found.outcome, found.reason) == (PolicyOutcome.REFUSED, "tightened")


def test_levels_come_nearer_to_equal_questions() -> None:
    thresholds = [threshold_at(0.92, level) for level in range(LAST_LEVEL)]
    assert thresholds == pytest.approx([0.92, 0.94, 0.96, 0.98])
    assert [target_at(0.02, level) for level in range(LAST_LEVEL)] == pytest.approx([0.02, 0.01, 0.005, 0.0025])


def test_every_policys_decision_for_explain() -> None:
    found = decisions(NUMBERS, [0, 1, 2], Rules(PolicyName.GUARDED, model=model(0.15)))
    assert {policy: one.index for policy, one in found.items()} == {
        PolicyName.OBSERVE: 1,
        PolicyName.FIXED: 0,
        PolicyName.GUARDED: 1,
        PolicyName.VERIFIED: 1,
    }
