"""The figures of `ragherd quality`: replays, intervals, curves and recommendations, against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from api.ports.answer_quality import Verdict
from api.quality import evidence
from api.quality.comparator import CONFUSION, MEASURED
from api.quality.measurement import (
    Figures,
    Outcomes,
    Rate,
    error_bound,
    figures,
    outcomes_of_stream,
    p_chr_auc,
    pareto,
    recommend,
    upper_bound,
    wilson,
)
from api.quality.replay import MISS, Compare, Ints, Judge, Near, Offer, Policy, Stream, Truth, best_scores, replay
from api.quality.replayed_policies import Guarded, Verified
from api.redis_store import search_index
from scripts.noisy_verdicts import NoisyVerdicts

NO_CLUSTER: Ints = np.array([], np.int64)


class AtLeast:
    """Serves the nearest candidate from a cosine up that the judge accepts, and records what it could learn from."""

    name = "test"
    verifier = False
    neighbours = 2

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.floor = 0.1
        self.labels: list[tuple[int, int, bool | None]] = []
        self.hits: list[tuple[int, int, bool | None]] = []

    def decide(self, offer: Offer) -> Near | None:
        found = self.score(offer)
        return found[0] if found is not None and found[1] >= self.threshold else None

    def score(self, offer: Offer) -> tuple[Near, float] | None:
        accepted = next((near for near in offer.near if not offer.objection(near)), None)
        return None if accepted is None else (accepted, accepted.similarity)

    def missed(self, offer: Offer, same: Compare) -> None:
        self.labels += [(offer.asked, near.place, same(near)) for near in offer.near[:1]]

    def served(self, offer: Offer, chosen: Near, same: Compare) -> None:
        self.hits.append((offer.asked, chosen.place, same(chosen)))


def stream_of(*angles: float) -> Stream:
    """Questions as directions in the plane, in degrees. Equal directions are equal questions."""
    radians = np.radians(angles)
    return Stream(np.stack([np.cos(radians), np.sin(radians)], axis=1), list(map(str, angles)), [True] * len(angles))


def accept(asked: int, near: Near) -> str:
    return ""


def truth_of(intents: str) -> Truth:
    return lambda asked, stored: intents[asked] == intents[stored]


def quiet(done: int, total: int) -> None:
    """Shows nothing."""


# -- Replay ------------------------------------------------------------------------------------------------------------


def test_a_stream_serves_only_questions_that_missed() -> None:
    """10 degrees are a cosine of .985, 20 of .940, 30 of .866. A question that hit is not in the cache."""
    policy = AtLeast(0.93)
    [run] = replay(stream_of(0, 20, 40, 60, 0), [policy], accept, truth_of("aabba"), quiet)
    assert list(run.served) == [MISS, 0, MISS, 2, 0]
    assert list(run.exact) == [False, False, False, False, True]
    assert list(run.cached) == [True, False, True, False, False]
    assert policy.labels == [(2, 0, False)]
    assert policy.hits == [(1, 0, True), (3, 2, True)]


def test_every_policy_has_its_own_cache() -> None:
    strict, lax = AtLeast(0.99), AtLeast(0.86)
    runs = replay(stream_of(0, 30, 35), [strict, lax], accept, truth_of("aaa"), quiet)
    assert [list(run.served) for run in runs] == [[MISS, MISS, 1], [MISS, 0, MISS]]


def test_the_guards_judge_each_pair_once_for_all_policies() -> None:
    judged: list[tuple[int, int]] = []

    def judge(asked: int, near: Near) -> str:
        judged.append((asked, near.place))
        return "numbers" if near.place == 1 else ""

    runs = replay(stream_of(0, 30, 31), [AtLeast(0.99), AtLeast(0.995)], judge, truth_of("aaa"), quiet)
    assert [list(run.served) for run in runs] == [[MISS, MISS, MISS]] * 2
    assert judged == [(1, 0), (2, 1), (2, 0)]


def test_a_question_that_cannot_be_compared_is_only_found_by_its_text() -> None:
    stream = Stream(stream_of(0, 1, 1, 0).vectors, ["a", "b", "b", "c"], [True, False, False, True])
    [run] = replay(stream, [AtLeast(0.9)], accept, truth_of("aaaa"), quiet)
    assert list(run.served) == [MISS, MISS, 1, 0]


def test_neighbors_are_exact_across_blocks() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(700, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = [str(one) for one in range(700)]
    [run] = replay(Stream(vectors, keys, [True] * 700), [AtLeast(0.9)], accept, lambda a, b: None, quiet)
    cached: list[int] = []
    for asked, served in enumerate(run.served):
        similar = vectors[cached] @ vectors[asked] if cached else np.array([])
        expected = cached[int(np.argmax(similar))] if len(similar) and similar.max() >= 0.9 else MISS
        assert served == expected
        cached += [asked] if served == MISS else []
    assert (run.served != MISS).sum() > 50


def test_scores_compare_each_question_with_all_earlier_ones() -> None:
    scores, right = best_scores(stream_of(0, 30, 31, 0), AtLeast(0.9), accept, truth_of("abaa"))
    assert scores == pytest.approx([-math.inf, math.cos(math.radians(30)), math.cos(math.radians(1)), -math.inf])
    assert list(right[1:3]) == [0, 0]


# -- The policy that learns --------------------------------------------------------------------------------------------


def clustered(count: int, intents: int, noise: float, seed: int) -> tuple[Stream, str]:
    """Questions around the direction of their intent; each intent is a letter."""
    rng = np.random.default_rng(seed)
    of = rng.integers(intents, size=count)
    vectors = rng.normal(size=(intents, 12))[of] + noise * rng.normal(size=(count, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Stream(vectors, list(map(str, range(count))), [True] * count), "".join(chr(65 + one) for one in of)


def counted(policy: Policy, stream: Stream, intents: str, judge: Judge = accept) -> Figures:
    [run] = replay(stream, [policy], judge, truth_of(intents), quiet)
    return figures(policy, outcomes_of_stream(run, truth_of(intents), np.array([], bool)), 0, seed=1)


@pytest.mark.slow
def test_verified_serves_more_than_a_fixed_threshold_once_it_has_learned() -> None:
    stream, intents = clustered(2500, 60, 0.55, seed=1)
    before, after = counted(Guarded(0.92), stream, intents), counted(Verified(0.02, 0.92, seed=1), stream, intents)
    assert after.hit_rate.value > 1.5 * before.hit_rate.value > 0.3
    assert after.error_per_hit is not None
    assert after.error_per_hit.value < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("repeated", [False, True])
def test_verified_learns_from_a_comparator_with_errors(*, repeated: bool) -> None:
    """Its rates are those of the real one: of equal answers a quarter gets no verdict, and 3 % are called different."""
    stream, intents = clustered(4000, 60, 0.55, seed=1)
    hear = NoisyVerdicts(MEASURED, list(map(ord, intents)), seed=1, repeated=repeated)
    noisy = Verified(0.02, 0.92, seed=1, hear=hear, confusion=CONFUSION)
    before, after = counted(Guarded(0.92), stream, intents), counted(noisy, stream, intents)
    assert after.hit_rate.value > 1.1 * before.hit_rate.value > 0.3
    assert after.error_per_hit is not None
    assert after.error_per_hit.value < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("same", "errors", "unsure"), [(True, 4 / 158, 44 / 158), (False, 6 / 159, 25 / 159)])
def test_simulated_errors_have_the_rates_that_were_measured_and_repeat(
    *, same: bool, errors: float, unsure: float
) -> None:
    """`repeated` errors come back with a second answer of the same intent as often as on the labeled pairs."""
    answers, kinds = 4000, 500
    hear = NoisyVerdicts(MEASURED, [one % kinds for one in range(answers)], seed=2)
    wrong = Verdict.DIFFERENT if same else Verdict.SAME
    kind_of_other = [(one + (0 if same else 1 + one // kinds)) % kinds for one in range(answers)]
    rows = [
        [hear(one, other, same) for other in range(kind, answers, kinds) if other != one]
        for one, kind in enumerate(kind_of_other)
    ]
    heard = [verdict for row in rows for verdict in row]
    assert heard.count(wrong) / len(heard) == pytest.approx(errors, abs=0.015)
    assert heard.count(Verdict.UNSURE) / len(heard) == pytest.approx(unsure, abs=0.03)
    again = [second is wrong for row in rows for first, second in pairwise(row) if first is wrong]
    assert 0.2 < np.mean(again) < 0.5
    assert [hear(one, 7, same) for one in range(50)] == [hear(7, one, same) for one in range(50)]


def test_verified_decides_as_guarded_until_it_has_labels() -> None:
    stream, intents = clustered(240, 60, 0.2, seed=1)
    before, after = counted(Guarded(0.92), stream, intents), counted(Verified(0.02, 0.92, seed=1), stream, intents)
    assert before.hits > 20
    assert (after.hits, after.wrong) == (before.hits, before.wrong)


@pytest.mark.slow
def test_verified_never_serves_what_a_guard_rejects() -> None:
    stream, intents = clustered(1000, 20, 0.3, seed=2)
    found = counted(Verified(0.02, 0.92, seed=1), stream, intents, judge=lambda asked, near: "numbers")
    assert found.hits == 0


@pytest.mark.slow
def test_a_verifier_that_knows_the_truth_adds_hits() -> None:
    stream, intents = clustered(2500, 60, 0.8, seed=1)
    truth = truth_of(intents)

    def score(asked: int, cached: int) -> float:
        return 4.0 if truth(asked, cached) else -4.0

    policies = [Verified(0.02, 0.92, seed=1), Verified(0.02, 0.92, seed=1, verifier=True)]
    runs = replay(stream, policies, accept, truth, quiet, score)
    without, with_verifier = ((run.served != MISS).sum() for run in runs)
    assert with_verifier > 1.2 * without
    found = outcomes_of_stream(runs[1], truth, np.array([], bool))
    assert (found.right[found.hits] == 1).mean() > 0.98


def test_the_verifier_scores_a_pair_once_for_all_policies() -> None:
    scored: list[tuple[int, int]] = []

    def score(asked: int, cached: int) -> float:
        scored.append((asked, cached))
        return 0.0

    policies = [Verified(target, 0.99, seed=1, verifier=True) for target in (0.01, 0.02)]
    replay(stream_of(0, 30, 60), policies, accept, truth_of("aaa"), quiet, score)
    assert scored == [(1, 0), (2, 1)]


@pytest.mark.slow
def test_a_stream_whose_truth_is_unknown_teaches_nothing() -> None:
    stream, _ = clustered(1000, 20, 0.3, seed=2)
    [run] = replay(stream, [Verified(0.02, 0.92, seed=1)], accept, lambda asked, stored: None, quiet)
    [fixed] = replay(stream, [Guarded(0.92)], accept, lambda asked, stored: None, quiet)
    assert (run.served != MISS).sum() == (fixed.served != MISS).sum()


def test_the_policies_look_at_as_many_entries_as_the_service() -> None:
    assert Guarded(0.9).neighbours == search_index.NEIGHBOURS
    assert Verified(0.02, 0.92, seed=1).neighbours == evidence.NEIGHBOURS


# -- Figures -----------------------------------------------------------------------------------------------------------


def outcomes(hits: str, right: str, could: str = "", cluster: Sequence[int] = ()) -> Outcomes:
    """One character per request: 1 or 0; `?` if it is not known whether a hit is right."""
    known = np.array([{"1": 1, "0": 0}.get(one, -1) for one in right])
    flags = [np.array([one == "1" for one in text], bool) for text in (hits, could)]
    return Outcomes(flags[0], known, flags[1], np.array(cluster, np.int64))


def test_the_figures_of_ten_requests() -> None:
    found = figures(AtLeast(0.9), outcomes("1111100000", "1110011111", "1111111100"), 1, seed=1)
    assert (found.requests, found.hits, found.exact, found.wrong) == (10, 5, 1, 2)
    assert found.hit_rate == Rate(0.5, *wilson(5, 10))
    assert found.error_per_hit == Rate(0.4, *wilson(2, 5))
    assert found.error_per_request == Rate(0.2, *wilson(2, 10))
    assert found.recall == Rate(3 / 8, *wilson(3, 8))


def test_unknown_truth_gives_no_error_rate() -> None:
    found = figures(AtLeast(0.9), outcomes("1100", "????"), 0, seed=1)
    assert found.hit_rate.value == 0.5
    assert (found.wrong, found.error_per_hit, found.error_per_request, found.recall) == (None, None, None, None)
    assert found.unknown == 2


def test_a_stream_counts_recall_among_questions_that_were_asked_before() -> None:
    truth = truth_of("aabba")
    [run] = replay(stream_of(0, 20, 40, 60, 5), [AtLeast(0.93)], accept, truth, quiet)
    could = np.array([False, True, False, True, True])
    found = figures(run.policy, outcomes_of_stream(run, truth, could), 0, seed=1)
    assert (found.hits, found.wrong) == (3, 0)
    assert found.recall is not None
    assert found.recall.value == 1.0


def test_wilson_matches_published_values() -> None:
    """R: prop.test(x, n, correct = FALSE)."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)
    assert wilson(81, 263) == pytest.approx((0.2552909, 0.3662101), abs=1e-5)


def test_the_upper_bound_is_that_of_clopper_and_pearson() -> None:
    """Without an error the bound is 1 - 0.05^(1/n); with one of two it is the square root of .95."""
    assert upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert upper_bound(1, 2) == pytest.approx(math.sqrt(0.95), abs=1e-9)
    assert upper_bound(3, 136) == pytest.approx(0.0561, abs=2e-4)
    assert upper_bound(5, 5) == 1.0
    assert upper_bound(200, 10_000) == pytest.approx(0.0225, abs=2e-4)


def test_hits_that_share_a_cached_question_widen_the_interval() -> None:
    right = "0" * 10 + "1" * 90
    alone = figures(AtLeast(0.9), outcomes("1" * 100, right), 0, seed=1)
    shared = figures(AtLeast(0.9), outcomes("1" * 100, right, "", [one // 10 for one in range(100)]), 0, seed=1)
    assert alone.error_per_hit is not None
    assert shared.error_per_hit is not None
    assert alone.error_per_hit.value == shared.error_per_hit.value == 0.1
    assert shared.error_per_hit.high > alone.error_per_hit.high + 0.05
    assert shared.error_per_hit.low == 0.0


def test_an_interval_is_never_narrower_than_without_clusters() -> None:
    found = figures(AtLeast(0.9), outcomes("1" * 20, "1" * 20, "", range(20)), 0, seed=1)
    assert found.error_per_hit == Rate(0.0, *wilson(0, 20))


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    found = Outcomes(
        np.ones(500, bool), rng.integers(0, 2, 500), np.array([], bool), rng.integers(0, 60, 500).astype(np.int64)
    )
    one, same, other = (figures(AtLeast(0.9), found, 0, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


# -- P-CHR AUC ---------------------------------------------------------------------------------------------------------


def test_the_area_under_precision_against_hit_ratio() -> None:
    """Scores .9 right, .8 wrong, .7 right, one never served: points (.25, 1), (.5, .5), (.75, 2/3)."""
    scores, right = np.array([0.9, 0.8, 0.7, -math.inf]), np.array([1, 0, 1, 1])
    area = p_chr_auc(scores, right, seed=1)
    assert area is not None
    assert area.value == pytest.approx(0.25 * (1 + 0.5) / 2 + 0.25 * (0.5 + 2 / 3) / 2)
    assert area.low <= area.value <= area.high


def test_equal_scores_are_one_point_of_the_curve() -> None:
    area = p_chr_auc(np.array([0.9, 0.8, 0.8, 0.8]), np.array([1, 0, 1, 1]), seed=1)
    assert area is not None
    assert area.value == pytest.approx(0.75 * (1 + 0.75) / 2)


def test_no_area_without_truth_or_candidates() -> None:
    assert p_chr_auc(np.array([0.9, 0.8]), np.array([1, -1]), seed=1) is None
    assert p_chr_auc(np.array([-math.inf]), np.array([1]), seed=1) is None


# -- Recommendation ----------------------------------------------------------------------------------------------------


def setting(threshold: float, hits: int, wrong_per_thousand: int) -> tuple[AtLeast, Outcomes]:
    """Of 4,000 requests some hit, and every thousandth or so of these is wrong, evenly in both halves."""
    count = 4000
    served = np.arange(count) % 10 < hits
    wrong = np.zeros(count, bool)
    step = round(1000 / wrong_per_thousand) if wrong_per_thousand else count
    wrong[np.flatnonzero(served)[step - 1 :: step]] = True
    return AtLeast(threshold), Outcomes(served, np.where(wrong, 0, 1), np.array([], bool), NO_CLUSTER)


HALVES = np.arange(4000) < 2000


def test_the_setting_with_most_hits_that_holds_the_error_is_recommended() -> None:
    said = recommend([setting(0.8, 9, 60), setting(0.9, 6, 5), setting(0.95, 3, 2)], HALVES, 0.02, seed=1)
    assert said.best is not None
    assert said.best.checked.threshold == 0.9
    assert said.best.checked.requests == 2000
    assert said.best.bound <= 0.02
    assert [one.bound <= 0.02 for one in said.checked] == [True, True, False]


def test_nothing_is_recommended_if_no_setting_holds_the_error() -> None:
    said = recommend([setting(0.8, 9, 60), setting(0.9, 6, 30)], HALVES, 0.02, seed=1)
    assert said.best is None
    assert len(said.checked) == 1, "the first failure ends the tests"


def test_a_setting_that_holds_only_where_it_was_chosen_is_refused() -> None:
    policy, found = setting(0.9, 6, 0)
    late = np.flatnonzero(found.hits & ~HALVES)[:100]
    found.right[late] = 0
    said = recommend([(policy, found)], HALVES, 0.02, seed=1)
    assert said.best is None
    assert said.checked[0].chosen.wrong == 0
    assert said.checked[0].checked.wrong == 100


def test_too_few_hits_hold_no_error() -> None:
    few = Outcomes(np.ones(100, bool), np.ones(100, np.int64), np.array([], bool), NO_CLUSTER)
    assert error_bound(few, seed=1) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert error_bound(outcomes("0000", "1111"), seed=1) == 1.0


def row(hits: int, wrong: int) -> Figures:
    return Figures("test", False, 0.9, 100, hits, 0, wrong, 0, Rate(hits / 100, 0, 1), None, None, None)


def test_the_pareto_front_has_no_row_that_another_beats() -> None:
    best = [row(10, 0), row(30, 1), row(30, 1), row(50, 4)]
    assert pareto([row(20, 1), best[3], row(40, 4), *best[:3], row(5, 0)]) == best
