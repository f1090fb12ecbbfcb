"""How units are assigned to the variants of an experiment, and what a variant changes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from api.errors import SettingsError, StoreUnavailable
from api.ports.answer_quality import PolicyName
from api.ports.experiment import (
    GROUPS,
    OUTSIDE,
    WHOLE,
    Experiment,
    FollowedExperiment,
    Segment,
    Unit,
    VariantSpec,
)
from api.ports.question import RAW, Query
from api.query.cache_key import fingerprint
from api.query.experiments import (
    CHANGES_ANSWERS,
    CHANGES_CACHE,
    ExperimentFollower,
    ExperimentView,
    RunningExperiment,
    effective,
    laid_out,
    place_of,
    unit_of,
)
from api.settings import validated_variant
from api.settings.loading import VARIES
from api.values import EmbedderIdentity
from tests.support.service import make_settings

UNITS = [f"default\0client\0user-{number}" for number in range(20_000)]
TEMPLATE = """
version = "mine-1"
nothing_relevant = "Nothing."
[plain]
system = "Answer."
[grounded]
system = "Answer from the passages."
passage = "[$number] $text"
user = "$passages $question"
"""


def experiment(
    shares: Sequence[int] = (5_000, 5_000),
    settings: Sequence[Mapping[str, Any]] = (),
    before: Sequence[Segment] = (),
    unit: Unit = "client",
    **more: Any,
) -> Experiment:
    given = [*settings, *({} for _ in shares)]
    variants = tuple(VariantSpec(f"v{index}", share, given[index]) for index, share in enumerate(shares))
    return Experiment("test", variants, laid_out(before, shares), unit, **more)


def running(of: Experiment) -> RunningExperiment:
    return RunningExperiment(of, "llama3.2", time.monotonic() + 3600)


def variant_at(segments: Sequence[Segment], place: int) -> int:
    return next(segment.variant for segment in segments if place < segment.end)


def lengths(segments: Sequence[Segment]) -> Counter[int]:
    found: Counter[int] = Counter()
    start = 0
    for segment in segments:
        found[segment.variant] += segment.end - start
        start = segment.end
    assert start == WHOLE
    return found


# -- layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(5_000, 5_000), (1, 1), (3_333, 3_333, 3_334), (500, 9_000), (100, 200, 300, 400)])
def test_each_variant_has_its_share_of_the_whole(shares: tuple[int, ...]) -> None:
    expected = {**dict(enumerate(shares)), OUTSIDE: WHOLE - sum(shares)}
    assert lengths(laid_out((), shares)) == {variant: share for variant, share in expected.items() if share}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5_000, 5_000), (6_000, 4_000)),
        ((3_300, 3_300, 3_400), (5_000, 2_500, 2_500)),
        ((500, 500), (2_000, 2_000)),
        ((4_000, 3_000, 2_000, 1_000), (1_000, 2_000, 3_000, 4_000)),
        ((10_000 - 1, 1), (1, 10_000 - 1)),
    ],
)
def test_a_change_of_shares_moves_no_unit_more_than_it_must(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    old, new = laid_out((), before), laid_out(laid_out((), before), after)
    shares = [(*before, WHOLE - sum(before)), (*after, WHOLE - sum(after))]
    moved = sum(variant_at(old, place) != variant_at(new, place) for place in range(WHOLE))
    assert moved == sum(max(0, now - then) for then, now in zip(*shares, strict=True))
    assert lengths(new) == {
        one: share for one, share in zip([*range(len(after)), OUTSIDE], shares[1], strict=True) if share
    }


def test_many_changes_leave_few_segments() -> None:
    segments = laid_out((), (2_500, 2_500, 2_500, 2_500))
    for step in range(200):
        segments = laid_out(segments, [1_000 + 500 * ((step + index) % 4) for index in range(4)])
    assert lengths(segments) == {**{index: 1_000 + 500 * ((199 + index) % 4) for index in range(4)}, OUTSIDE: 3_000}
    assert len(segments) < 100


# -- assignment -------------------------------------------------------------------------------------------------------


def test_units_spread_by_the_shares_and_evenly_over_the_groups() -> None:
    segments = laid_out((), (2_000, 5_000))
    places = [place_of("test", unit) for unit in UNITS]
    found = Counter(variant_at(segments, place) for place, _ in places)
    assert {one: round(count / len(UNITS), 2) for one, count in found.items()} == {0: 0.2, 1: 0.5, OUTSIDE: 0.3}
    groups = Counter(group for _, group in places)
    assert len(groups) == GROUPS
    assert all(abs(count / (len(UNITS) / GROUPS) - 1) < 0.25 for count in groups.values())


def test_experiments_assign_independently_of_each_other() -> None:
    segments = laid_out((), (5_000, 5_000))
    pairs = Counter(tuple(variant_at(segments, place_of(name, unit)[0]) for name in ("one", "other")) for unit in UNITS)
    assert all(abs(count / len(UNITS) - 0.25) < 0.02 for count in pairs.values())
    assert len(pairs) == 4


@pytest.mark.slow
def test_another_process_assigns_alike() -> None:
    code = "from api.query.experiments import place_of; print([place_of('test', f'unit {n}') for n in range(50)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([place_of("test", f"unit {number}") for number in range(50)])
    assert place_of("test", "unit 0") == place_of("test", "unit 0")


def test_a_client_keeps_its_variant_and_tenants_are_apart() -> None:
    one = Query("What is a breaker?", "acme", "llama3.2", client="ann")
    assert unit_of(one, "client") == unit_of(replace(one, question="What else?"), "client")
    assert unit_of(one, "client") != unit_of(replace(one, tenant="umbrella"), "client")
    assert unit_of(one, "client") != unit_of(replace(one, client="bob"), "client")


def test_without_a_client_a_question_keeps_its_variant_however_it_is_typed() -> None:
    one = Query("What is a breaker?", "acme", "llama3.2")
    assert unit_of(one, "client") == unit_of(replace(one, question="what is a  breaker"), "client")
    assert unit_of(one, "client") == unit_of(replace(one, client="ann"), "question")
    assert unit_of(one, "question") != unit_of(replace(one, tenant="umbrella"), "question")


def test_units_outside_all_shares_are_answered_as_without_an_experiment() -> None:
    assign = running(experiment((1, 1))).assigned
    queries = [Query("Why?", "default", "llama3.2", client=f"user-{number}") for number in range(1_000)]
    untouched = [query for query in queries if assign(query) is query]
    assert len(untouched) > 990


# -- what a variant changes -------------------------------------------------------------------------------------------


def both(**settings: Any) -> RunningExperiment:
    return running(experiment((1, 9_999), [{}, settings]))


def test_a_variant_changes_defaults_but_not_what_a_request_asks_for() -> None:
    assigned = both(LLM_MODEL="mistral", TOP_K=8).assigned
    plain = Query("Why?", "default", "llama3.2", client="ann")
    assert (assigned(plain).model, assigned(plain).top_k) == ("mistral", 8)
    asked = replace(plain, model="qwen3", top_k=0)
    assert (assigned(asked).model, assigned(asked).top_k) == ("qwen3", 0)
    raw = replace(plain, template=RAW)
    assert (assigned(raw).model, assigned(raw).top_k) == ("llama3.2", 4)


def test_rules_of_a_variant() -> None:
    given = {"SEMANTIC_CACHE_POLICY": "fixed", "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.8}
    found = both(**given).assigned(Query("Why?", "default", "llama3.2")).variant
    assert found is not None
    assert (found.policy, found.threshold, found.caches, found.deviates) == (PolicyName.FIXED, 0.8, True, True)
    off = both(SEMANTIC_CACHE_ENABLED=False).assigned(Query("Why?", "default", "llama3.2")).variant
    assert off is not None
    assert (off.caches, off.deviates) == (False, False)


def scopes(of: Experiment) -> list[str]:
    embedder = EmbedderIdentity("stub", 8, "0" * 10)
    query = Query("Why?", "default", "llama3.2")
    variants = [effective(of, spec) for spec in of.variants]
    keys = [fingerprint(replace(query, variant=one), embedder, "digest", "g", one.namespace) for one in variants]
    return [*(key.scope for key in keys), fingerprint(query, embedder, "digest", "g").scope]


def test_variants_have_separate_answers_by_default_also_in_a_later_run_of_the_same_name() -> None:
    first = scopes(experiment(started_ms=1))
    again = scopes(experiment(started_ms=2))
    assert len({*first, *again}) == 5  # twice two variants, and the scope without an experiment


def test_variants_that_share_answers_share_those_from_before_too() -> None:
    assert len(set(scopes(experiment(share_answers=True)))) == 1


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 1.5}, "SEMANTIC_CACHE_SIMILARITY_THRESHOLD: Input should be less"),
        ({"SEMANTIC_CACHE_POLICY": "bold"}, "SEMANTIC_CACHE_POLICY: Input should be 'observe', 'fixed', 'guarded'"),
        ({"LLM_MODEL": ""}, "LLM_MODEL: String should have at least 1 character"),
        ({"TOP_K": 21}, "TOP_K: Input should be less than or equal to 20"),
        ({"SEMANTIC_CACHE_TTL": 60}, "SEMANTIC_CACHE_TTL: cannot vary from request to request; a variant may set LLM_"),
        ({"REDIS_URL": "redis://x"}, "REDIS_URL: cannot vary from request to request"),
        ({"THRESHOLD": 0.9}, "THRESHOLD: no such setting; a variant may set LLM_MODEL, PROMPT_TEMPLATE, SEMANTIC_"),
        ({"PROMPT_TEMPLATE_PATH": "a.toml"}, "PROMPT_TEMPLATE_PATH: give the text of the file as PROMPT_TEMPLATE"),
    ],
)
def test_a_setting_that_is_wrong_or_cannot_vary_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    settings = make_settings("redis://localhost", "http://localhost:11434")
    with pytest.raises(SettingsError) as raised:
        validated_variant(settings, given)
    assert str(raised.value).startswith(message)


def test_every_setting_that_may_vary_is_one_that_requests_use() -> None:
    assert ", ".join(sorted([*CHANGES_ANSWERS, *CHANGES_CACHE])) == VARIES


def test_a_variant_cannot_turn_on_what_the_service_lacks() -> None:
    off = make_settings("redis://localhost", "http://localhost:11434", cache={"enabled": False})
    assert validated_variant(off, {"SEMANTIC_CACHE_ENABLED": False}) == {"SEMANTIC_CACHE_ENABLED": False}
    with pytest.raises(SettingsError, match="a variant cannot turn it on"):
        validated_variant(off, {"SEMANTIC_CACHE_ENABLED": True})


# -- following --------------------------------------------------------------------------------------------------------


class Memory:
    """A store with one experiment, which can be lost."""

    def __init__(self) -> None:
        self.stored = FollowedExperiment(0)
        self.lost = False

    async def follow(self, known: int) -> FollowedExperiment | None:
        if self.lost:
            raise StoreUnavailable("lost")
        return None if known == self.stored.epoch else self.stored


def following(store: Memory) -> tuple[ExperimentView, ExperimentFollower]:
    view = ExperimentView()
    return view, ExperimentFollower(view, store, "llama3.2", asyncio.Event())  # type: ignore[arg-type]


async def test_a_worker_that_loses_redis_keeps_the_experiment_and_a_fresh_one_has_none() -> None:
    store = Memory()
    store.stored = FollowedExperiment(7, 1_000, replace(experiment(), ends_ms=61_000))
    view, follower = following(store)
    await follower.follow()
    store.lost = True
    with pytest.raises(StoreUnavailable):
        await follower.follow()
    assert view.running is not None
    assert view.running.ends_at == pytest.approx(time.monotonic() + 60, abs=5)
    fresh, late = following(store)
    with pytest.raises(StoreUnavailable):
        await late.follow()
    assert fresh.running is None


async def test_an_experiment_ends_at_its_time_without_redis() -> None:
    store = Memory()
    store.stored = FollowedExperiment(7, 1_000, replace(experiment(), ends_ms=1_050))
    view, follower = following(store)
    await follower.follow()
    assert view.running is not None
    store.lost = True
    task = asyncio.create_task(follower.keep_following())
    async with asyncio.timeout(5):
        while view.running is not None:
            await asyncio.sleep(0.01)
    task.cancel()


async def test_an_experiment_that_is_stopped_or_over_or_gone_is_not_run() -> None:
    store = Memory()
    view, follower = following(store)
    for stored in (
        FollowedExperiment(1, 5_000, replace(experiment(), ends_ms=4_000)),
        FollowedExperiment(2, 5_000, replace(experiment(), ends_ms=9_000, stopped_ms=4_500)),
        FollowedExperiment(3, 5_000),
    ):
        store.stored = FollowedExperiment(stored.epoch + 10, 0, replace(experiment(), ends_ms=9_000))
        await follower.follow()
        assert view.running is not None
        store.stored = stored
        await follower.follow()
        assert view.running is None


@pytest.mark.parametrize("unknown", [{"SEMANTIC_CACHE_POLICY": "clairvoyant"}, {"NO_SETTING_YET": 3}])
async def test_an_experiment_of_a_later_release_is_left_alone(unknown: dict[str, Any]) -> None:
    store = Memory()
    later = experiment(settings=[{}, unknown])
    store.stored = FollowedExperiment(7, 0, replace(later, ends_ms=9_000))
    view, follower = following(store)
    await follower.follow()
    assert view.running is None


def test_a_prompt_of_a_variant_is_part_of_the_key() -> None:
    found = effective(
        experiment(settings=[{"PROMPT_TEMPLATE": TEMPLATE}]), VariantSpec("v0", 1, {"PROMPT_TEMPLATE": TEMPLATE})
    )
    assert found.prompt_scope.startswith("mine-1-")
