"""What a verifier brings along for a deployment that has no labels yet, and how it gives way to labels."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from api.embedders.verifier import PRIOR as PRIOR_FILE
from api.errors import SettingsError
from api.ports.answer_quality import Evidence, Label, PolicyName, PooledLabel, Verdict, Versions
from api.quality.assessment import assess
from api.quality.calibration import (
    AGAIN_DIFFERENT,
    AGAIN_SAME,
    PRIOR_HALF,
    PRIOR_WRONG,
    Channel,
    Prior,
    observations,
    read_prior,
)
from api.quality.evidence import NearEntry, evidence_of
from api.quality.keeper import QualityView
from api.quality.policies import CANDIDATES_FROM, LAST_LEVEL, Published, QualitySettings
from api.wiring.cache import prior_at
from training import base

VERSIONS = Versions("embedder", "verifier", "comparator")
SURE = evidence_of([NearEntry(0.9, "a", verifier=5.0)], 0)
TRAP = evidence_of([NearEntry(0.9, "a", verifier=-5.0)], 0)


def written(count: int = 1500) -> bytes:
    """Half of the pairs are traps. The score tells most of them apart, the cosine little."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        same = int(random.random() < 0.5)
        rows.append([round(random.normal(0.8, 0.05), 3), round(random.normal(3 if same else -3, 2), 2), same])
    return json.dumps({"embedder": "embedder", "verifier": "verifier", "pairs": rows}).encode()


PRIOR = read_prior(written())
SETTINGS = QualitySettings(PolicyName.VERIFIED, 0.92, 0.02, VERSIONS, prior=PRIOR)


def labels(count: int, verdict: Verdict, evidence: Evidence = SURE) -> list[PooledLabel]:
    return [
        PooledLabel(
            "scope",
            "tenant",
            Label(evidence, verdict, "miss", False, "semantic", PolicyName.VERIFIED, VERSIONS, 1.0, number + 1),
        )
        for number in range(count)
    ]


def assessed(found: list[PooledLabel], settings: QualitySettings = SETTINGS) -> Published:
    return assess(found, Counter({"scope": len(found)}), Published(), settings, len(found) + 1, {}).published


def test_half_of_the_pairs_are_traps_and_count_as_in_traffic() -> None:
    observed = PRIOR.observed
    assert 0.4 < observed.wrong.mean() < 0.6
    assert (observed.wrong * observed.weight).sum() / observed.weight.sum() == pytest.approx(PRIOR_WRONG)
    assert observed.weight.sum() == pytest.approx(len(observed))


def test_it_serves_what_the_score_is_sure_of_before_there_are_labels() -> None:
    model = PRIOR.model(0.02)
    assert model is not None
    assert model.risk(SURE) < model.level < model.risk(TRAP)
    assert model.labels == 0


def test_a_lower_target_serves_less() -> None:
    levels = [one.level for target in (0.0001, 0.005, 0.02, 0.05) if (one := PRIOR.model(target)) is not None]
    assert levels == sorted(levels)
    assert levels[0] < levels[-1]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"embedder":"","verifier":"","pairs":[[1]]}', b'{"pairs":1}'])
def test_a_file_that_is_not_a_prior_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"(?i)prior|json|input|values"):
        read_prior(text)


def test_a_damaged_file_stops_the_start_with_the_settings_name(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).touch()
    assert prior_at(str(tmp_path)) is None, "a verifier may bring nothing along"
    (tmp_path / PRIOR_FILE).write_bytes(written())
    assert prior_at(str(tmp_path)) is not None
    (tmp_path / PRIOR_FILE).write_bytes(written()[:-1])
    with pytest.raises(SettingsError, match=r"SEMANTIC_CACHE_VERIFIER_PATH: cannot read prior\.json"):
        prior_at(str(tmp_path))


def test_a_deployment_without_labels_decides_by_it() -> None:
    view = QualityView(SETTINGS)
    rules = view.rules("scope")
    assert rules.verifies
    assert rules.scored
    assert rules.model is not None
    assert rules.model.risk(SURE) < rules.model.level
    assert view.by_threshold is None, "no cosine decides"


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, prior=None),
        replace(SETTINGS, versions=replace(VERSIONS, embedder="another")),
        replace(SETTINGS, versions=replace(VERSIONS, verifier="another")),
        replace(SETTINGS, policy=PolicyName.GUARDED),
    ],
)
def test_another_embedder_verifier_or_policy_decides_by_the_threshold(settings: QualitySettings) -> None:
    view = QualityView(settings)
    assert view.by_threshold == pytest.approx(0.92)
    assert not view.rules("scope").verifies


def test_a_tightened_fleet_serves_less_by_it() -> None:
    def risk_at(level: int) -> float:
        view = QualityView(SETTINGS)
        state = replace(view.state(), level=level, versions=VERSIONS, policy=PolicyName.VERIFIED)
        view.adopt(Published(state))
        model = view.rules("scope").model
        assert model is not None
        return model.level

    assert risk_at(LAST_LEVEL - 1) < risk_at(1) < risk_at(0)


def test_a_few_labels_neither_forget_it_nor_count_as_learned() -> None:
    found = assessed(labels(20, Verdict.SAME))
    assert found.model is not None
    assert found.model.risk(SURE) < found.model.level
    assert found.model.labels == 20
    assert not found.state.learned


def test_labels_that_contradict_it_win() -> None:
    """Here answers differ although the score is sure. The prior alone would serve them."""
    found = assessed(labels(300, Verdict.DIFFERENT) + labels(300, Verdict.SAME, TRAP))
    assert found.state.learned
    assert found.model is None or found.model.risk(SURE) > found.model.level


def test_it_fades_as_labels_come() -> None:
    right, wrong = ([one.label for one in labels(200, verdict)] for verdict in (Verdict.SAME, Verdict.DIFFERENT))
    few, many = observations([], 0), observations([*right, *wrong], 0)
    weights = [PRIOR.added_to(own, Channel()).weight.sum() - own.weight.sum() for own in (few, many)]
    expected = 0.5 ** (many.weight.sum() / PRIOR_HALF)
    assert weights[1] / weights[0] == pytest.approx(expected)
    assert expected < 0.3


def test_right_labels_alone_do_not_serve_its_traps() -> None:
    """They say nothing about what is wrong, however many there are."""
    model = assessed(labels(5000, Verdict.SAME)).model
    assert model is not None
    assert model.risk(SURE) < model.level < model.risk(TRAP)


def test_the_comparators_errors_are_allowed_for() -> None:
    """Its true verdicts count as the comparator would have said them, so they do not look better than labels."""
    none = observations([], 0)
    seen = PRIOR.added_to(none, Channel(called_same=0.04, called_different=0.03)).wrong
    expected = [0.03 * AGAIN_DIFFERENT, 1 - 0.04 * AGAIN_SAME]
    assert sorted(set(seen.tolist())) == pytest.approx(expected), "as two comparisons that agree"


def test_training_writes_the_pairs_that_the_policy_considers() -> None:
    assert base.CONSIDERED == CANDIDATES_FROM


def test_it_belongs_to_its_embedder_and_verifier() -> None:
    prior: Prior = PRIOR
    assert prior.fits(VERSIONS)
    assert prior.fits(replace(VERSIONS, comparator="another"))
    assert not prior.fits(Versions("", ""))
