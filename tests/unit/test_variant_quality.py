"""The rules of a variant of an experiment, next to those of the fleet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.ports.answer_quality import PolicyName, QualityState, TenantLevel, Versions
from api.ports.experiment import Variant
from api.quality.keeper import NEVER, QualityView, VariantQuality
from api.quality.policies import LAST_LEVEL, Published, QualitySettings, threshold_at

SETTINGS = QualitySettings(PolicyName.GUARDED, 0.92, 0.02, Versions("e"))
SCOPE = "scope"


def variant(**rules: Any) -> Variant:
    return Variant("trial", "other", "trial/other", namespace="trial/other/1", **rules)


def view(level: int = 0, own: int = 0) -> QualityView:
    made = QualityView(SETTINGS)
    levels = {"trial/other": (own, 1)}
    state = QualityState(
        1, 1, PolicyName.GUARDED, Versions("e"), level, threshold_at(0.92, level), variant_levels=levels
    )
    made.adopt(Published(state))
    return made


def test_a_variant_without_rules_of_its_own_has_the_fleets() -> None:
    fleet = view(level=2)
    assert fleet.of(variant(model="mistral")) is fleet


def test_a_threshold_of_its_own_rises_with_the_higher_of_both_levels() -> None:
    for level, own in ((0, 0), (2, 0), (0, 2), (1, 3)):
        found = view(level, own).of(variant(threshold=0.8))
        expected = threshold_at(0.8, max(level, own))
        assert isinstance(found, VariantQuality)
        assert found.by_threshold == expected
        rules = found.rules(SCOPE)
        assert (rules.policy, rules.threshold, rules.level) == (PolicyName.GUARDED, expected, max(level, own))


@pytest.mark.parametrize(("level", "own"), [(LAST_LEVEL, 0), (0, LAST_LEVEL)])
def test_at_the_last_level_of_either_nothing_similar_is_served(level: int, own: int) -> None:
    found = view(level, own).of(variant(threshold=0.5))
    assert found.by_threshold == NEVER
    assert found.rules(SCOPE).closed


def test_a_tenant_that_is_tightened_is_so_in_a_variant_too() -> None:
    fleet = view()
    state = replace(fleet.published.state, tenants={"acme": TenantLevel(2, 1)})
    fleet.adopt(replace(fleet.published, state=state))
    found = fleet.of(variant(threshold=0.8))
    assert dict(found.of_tenants) == {"acme": threshold_at(0.8, 2)}
    assert (found.rules(SCOPE, "acme").level, found.rules(SCOPE, "other").level) == (2, 0)
    assert dict(fleet.of(variant(policy=PolicyName.FIXED)).of_tenants) == {}


def test_a_policy_of_its_own_keeps_the_fleets_threshold() -> None:
    fixed = view().of(variant(policy=PolicyName.FIXED))
    assert (fixed.by_threshold, fixed.observes) == (None, False)
    assert (fixed.rules(SCOPE).policy, fixed.rules(SCOPE).threshold) == (PolicyName.FIXED, 0.92)
    assert view().of(variant(policy=PolicyName.OBSERVE)).observes
    verified = view().of(variant(policy=PolicyName.VERIFIED))
    assert verified.by_threshold == 0.92, "without a model it decides as `guarded`"


def test_a_variant_is_remembered_until_there_are_too_many() -> None:
    fleet = view()
    first = fleet.of(variant(threshold=0.8))
    assert fleet.of(variant(threshold=0.8)) is first
    for number in range(30):
        fleet.of(replace(variant(threshold=0.8), label=f"trial/{number}"))
    assert fleet.of(variant(threshold=0.8)) is not first


def test_variants_that_share_answers_have_separate_rules() -> None:
    fleet = view()
    found = [
        fleet.of(Variant("trial", name, f"trial/{name}", threshold=threshold)).by_threshold
        for name, threshold in (("low", 0.8), ("high", 0.95))
    ]
    assert found == [0.8, 0.95]
