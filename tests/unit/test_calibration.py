"""Learning from labels: the risk of a candidate, and up to which risk to serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from api.ports.answer_quality import Confusion, Evidence, Label, LabelSource, PolicyName, Verdict, Versions
from api.quality.calibration import (
    FEATURES,
    NOTHING,
    SIGNS,
    Channel,
    Model,
    channel_of,
    fit_pooled,
    learn,
    learn_scope,
    observations,
    read_model,
)

VERSIONS = Versions("e", "", "c")
CLEAR = Channel()


def risk_of(evidence: Evidence) -> float:
    """The true risk: low for a high cosine and a wide margin."""
    odds = 1.0 + 6 * (evidence.similarity - 0.8) * 5 + 2 * (evidence.similarity - evidence.other) * 5
    return float(1 / (1 + np.exp(odds)))


def label(evidence: Evidence, *, wrong: bool, source: LabelSource = "miss", at_ms: int = 0) -> Label:
    verdict = Verdict.DIFFERENT if wrong else Verdict.SAME
    return Label(evidence, verdict, source, False, "semantic", PolicyName.VERIFIED, VERSIONS, 1.0, at_ms)


def drawn(
    count: int, seed: int = 0, risk: Callable[[Evidence], float] = risk_of, channel: Channel = CLEAR
) -> list[Label]:
    random = np.random.default_rng(seed)
    labels = []
    for _ in range(count):
        similarity = float(random.uniform(0.65, 1.0))
        other = float(random.uniform(0.4, similarity))
        evidence = Evidence(similarity, other, float(random.uniform(1, 4)), float(random.uniform(0, 2)))
        wrong = bool(random.random() < risk(evidence))
        said = random.random() >= channel.called_same if wrong else random.random() < channel.called_different
        labels.append(label(evidence, wrong=bool(said)))
    return labels


def model_from(labels: list[Label], channel: Channel = CLEAR, target: float = 0.02) -> Model:
    learned = learn(observations(labels, 0), channel, target)
    assert learned is not None
    return learned[1]


def served_wrong(model: Model, risk: Callable[[Evidence], float] = risk_of) -> tuple[float, float]:
    """The share of other candidates that the model serves, and how many of those are wrong in truth."""
    evidence = [one.evidence for one in drawn(4000, 99)]
    served = [one for one in evidence if model.risk(one) <= model.level]
    return len(served) / len(evidence), float(np.mean([risk(one) for one in served])) if served else 0.0


@pytest.mark.slow
def test_what_is_served_stays_under_the_target() -> None:
    for target in (0.01, 0.02, 0.05):
        share, wrong = served_wrong(model_from(drawn(3000), target=target))
        assert share > 0.2
        assert wrong <= target


@pytest.mark.slow
def test_the_comparators_errors_are_taken_out() -> None:
    channel = Channel(0.02, 0.05)
    labels = drawn(6000, channel=channel)
    share, wrong = served_wrong(model_from(labels, channel))
    assert share > 0.1, "5 % of right answers are called different, and the target is 2 %"
    assert wrong <= 0.02
    assert served_wrong(model_from(labels))[0] < share / 3, "taken at their word, they leave little to serve"


@pytest.mark.slow
def test_two_verdicts_that_agree_are_rarely_wrong() -> None:
    channel = Channel(0.04, 0.04)
    different, clarity = channel.of(np.array([1.0, 2.0]))
    assert (different[0], clarity[0]) == (0.04, channel.clarity)
    assert different[1] < 0.01, "to assume more errors than there are would serve too much"
    assert 1 - different[1] - clarity[1] >= 0.02, "and so would to assume that a wrong answer is always seen"
    labels = [replace(one, votes=2 * one.balance) for one in drawn(3000, channel=Channel(0.02, 0.004))]
    share, wrong = served_wrong(model_from(labels, channel))
    assert share > 0.4
    assert wrong <= 0.02


def test_a_label_counts_by_its_votes_and_not_if_they_leave_it_open() -> None:
    one = label(Evidence(0.9), wrong=True)
    votes = [None, -2, 0, 2, 1]
    found = observations([replace(one, votes=number) for number in votes], 0)
    assert list(zip(found.wrong, found.votes, strict=True)) == [(0, 1), (0, 2), (1, 2), (1, 1)], "newest first"
    unsure = replace(one, verdict=Verdict.UNSURE)
    assert len(observations([unsure, replace(unsure, votes=-1)], 0)) == 1


def test_an_error_that_no_evidence_shows_lowers_the_level() -> None:
    def risk(evidence: Evidence) -> float:
        return 0.1 + 0.9 * risk_of(evidence)

    assert model_from(drawn(3000, risk=risk)).level == NOTHING


def test_more_similarity_never_raises_the_risk() -> None:
    def upside_down(evidence: Evidence) -> float:
        return evidence.similarity**4

    fit = fit_pooled(observations(drawn(2000, risk=upside_down), 0), CLEAR)
    assert fit is not None
    assert (fit.coefficients * SIGNS >= 0).all()
    assert fit.coefficients[FEATURES.index("similarity")] == 0


def test_few_labels_give_no_model() -> None:
    assert learn(observations(drawn(99), 0), CLEAR, 0.02) is None
    right = [label(one.evidence, wrong=False) for one in drawn(500)]
    assert learn(observations(right, 0), CLEAR, 0.02) is None, "nothing was ever wrong: nothing can be told apart"


@pytest.mark.slow
def test_a_scope_moves_away_from_all_others_as_far_as_its_labels_say() -> None:
    def worse(evidence: Evidence) -> float:
        return float(1 / (1 + np.exp(-np.log(risk_of(evidence) / (1 - risk_of(evidence)) + 1e-12) - 3)))

    many = drawn(3000)
    for count, most in ((50, 0.06), (1000, 0.025)):
        own = drawn(count, 5, risk=worse)
        pool = observations([*many, *own], 0)
        learned = learn(pool, CLEAR, 0.02)
        assert learned is not None
        model = learn_scope(learned[0], pool, observations(own, 0), CLEAR, 0.02)
        assert model is not None
        assert served_wrong(model, worse)[1] <= most
        assert served_wrong(model)[0] < served_wrong(learned[1])[0]
    fit = fit_pooled(observations(many, 0), CLEAR)
    assert fit is not None
    assert learn_scope(fit, observations(many, 0), observations(many[:10], 0), CLEAR, 0.02) is None


def test_a_scope_without_labels_is_served_more_carefully_than_the_average() -> None:
    labels = drawn(3000)
    pool = observations(labels, 0)
    learned = learn(pool, CLEAR, 0.02)
    assert learned is not None
    own = learn_scope(learned[0], pool, pool, CLEAR, 0.02)
    assert own is not None
    evidence = Evidence(0.9, 0.6, 2.0, 0.5)
    assert own.risk(evidence) < learned[1].risk(evidence)


def test_good_feedback_counts_nowhere_and_bad_feedback_little() -> None:
    labels = drawn(400)
    lies = [label(one.evidence, wrong=False, source="feedback") for one in drawn(400, 7)]
    assert len(observations([*labels, *lies], 0, feedback=True)) == 400
    blame = [label(one.evidence, wrong=True, source="feedback") for one in drawn(4000, 8)]
    assert len(observations([*labels, *blame], 0)) == 400, "only the scope's own model sees it"
    found = observations([*labels, *blame], 0, feedback=True)
    assert len(found) == 4400
    assert found.weight[:4000].sum() == pytest.approx(0.2 * found.weight[4000:].sum(), rel=1e-6)


@pytest.mark.slow
def test_one_tenant_counts_no_more_than_all_others() -> None:
    lies = [label(one.evidence, wrong=False) for one in drawn(5000, 3)]
    honest = drawn(1000)
    tenants = ["liar"] * len(lies) + ["a", "b"] * 500
    found = observations([*lies, *honest], 0, tenants)
    assert found.weight[1000:].sum() <= found.weight[:1000].sum() * 1.001
    learned = learn(found, CLEAR, 0.02)
    assert learned is not None
    share, _ = served_wrong(learned[1])
    assert share < 0.85, "the liar would have everything served"


@pytest.mark.slow
def test_old_labels_fade() -> None:
    def worse(evidence: Evidence) -> float:
        return min(1.0, 3 * risk_of(evidence) + 0.05)

    day_ms = 24 * 3600 * 1000
    old = [replace(one, at_ms=1) for one in drawn(2000)]
    new = [replace(one, at_ms=30 * day_ms) for one in drawn(1000, 4, risk=worse)]
    same_age = learn(observations([*old, *drawn(1000, 4, risk=worse)], 1), CLEAR, 0.02)
    learned = learn(observations([*old, *new], 30 * day_ms), CLEAR, 0.02)
    assert same_age is not None
    assert learned is not None
    assert served_wrong(learned[1], worse)[0] < served_wrong(same_age[1], worse)[0] / 2


def test_labels_without_use_are_left_out() -> None:
    one = drawn(1)[0]
    unsure = replace(one, verdict=Verdict.UNSURE)
    guarded = replace(one, evidence=replace(one.evidence, guard="numbers"))
    exact = replace(one, kind="exact")
    assert len(observations([one, unsure, guarded, exact], 0)) == 1


def test_a_model_survives_its_json() -> None:
    model = model_from(drawn(1000))
    again = read_model(model.as_json())
    assert again is not None
    evidence = Evidence(0.87, 0.7, 2.5, 1.5)
    assert again.risk(evidence) == pytest.approx(model.risk(evidence), rel=1e-3)
    assert read_model({**model.as_json(), "features": ["other"]}) is None, "of another release"


def test_a_model_of_the_former_release_serves_what_it_did() -> None:
    """Its level was chosen for risks with a wider bound."""
    model, evidence = model_from(drawn(1000)), Evidence(0.87, 0.7, 2.5, 1.5)
    former = {name: value for name, value in model.as_json().items() if name != "bound"}
    again = read_model(former)
    assert again is not None
    assert again.risk(evidence) == pytest.approx(replace(model, bound=1.0).risk(evidence), rel=1e-3)
    assert again.risk(evidence) > model.risk(evidence)


@pytest.mark.slow
@pytest.mark.timed
def test_a_fit_of_all_labels_takes_well_under_a_second() -> None:
    labels = drawn(20_000)
    pool = observations(labels, 0)
    began = time.process_time()
    assert learn(pool, CLEAR, 0.02) is not None
    assert time.process_time() - began < 1.0


def test_rates_of_the_comparator() -> None:
    assert channel_of(Confusion()) == CLEAR
    channel = channel_of(Confusion(100, 2, 200, 10))
    assert (channel.called_same, channel.called_different) == (0.02, 0.05)
    assert channel.clarity == pytest.approx(0.93)
