"""One worker learns for the fleet and all follow, whatever becomes of Redis, of the keeper and of the embedder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from api.errors import StoreUnavailable
from api.ports.answer_quality import Evidence, Label, PolicyName, QualityEvent, Verdict, Versions
from api.ports.telemetry import Telemetry
from api.quality import keeper
from api.quality.assessment import Assessment, assess
from api.quality.keeper import NEVER, QualityKeeper, QualityView
from api.quality.policies import LAST_LEVEL, Published, QualitySettings, published_as_json
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.fleet import RedisLeaderLease
from api.redis_store.stores.label_store import RedisLabels
from api.redis_store.stores.quality_store import RedisQuality

KEYS = Keys()
SCOPES = [f"{'a' * 10}-{digit * 24}" for digit in "0123"]
VERSIONS = Versions("e", "", "c-1")
SETTINGS = QualitySettings(PolicyName.VERIFIED, 0.92, 0.02, VERSIONS)


class Events(Telemetry):
    """Keeps the events."""

    def __init__(self) -> None:
        self.seen: list[QualityEvent] = []

    def quality_event(self, event: QualityEvent) -> None:
        self.seen.append(event)


@dataclass
class Worker:
    view: QualityView
    keeper: QualityKeeper
    lease: RedisLeaderLease
    events: Events
    versions: Versions

    async def turn(self) -> None:
        """What the worker does each second."""
        await self.keeper.follow()
        await self.keeper.learn_if_due()


@pytest.fixture
async def gate(redis: BatchingRedis) -> HealthGatedRedis:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    return gate


def worker(gate: HealthGatedRedis, name: str, settings: QualitySettings = SETTINGS) -> Worker:
    lease, events = RedisLeaderLease(gate, KEYS.quality_lease, name), Events()
    view = QualityView(settings)
    store = RedisQuality(gate, KEYS, name)

    async def versions() -> Versions:
        return found.versions

    keeper = QualityKeeper(view, store, RedisLabels(gate, KEYS), lease, events, versions)
    found = Worker(view, keeper, lease, events, settings.versions)
    return found


async def append(gate: HealthGatedRedis, labels: Sequence[Label], scope: str = SCOPES[0], tenant: str = "t") -> None:
    store = RedisLabels(gate, KEYS)
    await asyncio.gather(*(store.append(scope, tenant, label) for label in labels))


def misses(count: int, seed: int = 0) -> list[Label]:
    """The nearer, the more often right."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        similarity = float(random.uniform(0.65, 1.0))
        verdict = Verdict.SAME if random.random() < (similarity - 0.6) * 4 else Verdict.DIFFERENT
        evidence = Evidence(similarity, similarity - 0.2)
        found.append(Label(evidence, verdict, "miss", False, "semantic", PolicyName.VERIFIED, VERSIONS))
    return found


def hits(count: int, wrong: int, similarity: float = 0.95) -> list[Label]:
    """Labels of shadow calls: every few hits one is wrong."""
    every = count // wrong if wrong else count + 1
    return [
        Label(
            Evidence(similarity, 0.7),
            Verdict.DIFFERENT if (number + 1) % every == 0 else Verdict.SAME,
            "shadow",
            True,
            "semantic",
            PolicyName.VERIFIED,
            VERSIONS,
            0.1,
        )
        for number in range(count)
    ]


async def test_one_learns_and_all_follow(gate: HealthGatedRedis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, misses(500))
    await one.turn()
    assert one.view.published.model is not None
    assert one.view.by_threshold is None, "a model decides"
    assert [event.change for event in one.events.seen] == ["learned"]
    await other.turn()
    assert other.view.published == one.view.published
    assert other.events.seen == [], "one worker reports for all"


async def test_a_scopes_model_is_loaded_when_a_look_up_needs_it(gate: HealthGatedRedis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, misses(500))
    await one.turn()
    await other.turn()
    pooled = other.view.published.model
    assert other.view.rules(SCOPES[0]).model is pooled, "not known yet"
    await other.keeper.follow()
    own = other.view.rules(SCOPES[0]).model
    assert own is not pooled
    assert own is not None
    assert own.labels == 500
    assert other.view.rules(SCOPES[1]).model is pooled
    await other.keeper.follow()
    assert other.view.rules(SCOPES[1]).model is pooled
    assert not other.view.wanted, "what is known not to exist is not asked for again"


async def test_a_scopes_model_stays_in_use_until_the_next_one_is_loaded(gate: HealthGatedRedis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, misses(500))
    await one.turn()
    await other.keeper.follow()
    other.view.rules(SCOPES[0])
    await other.keeper.follow()
    own = other.view.rules(SCOPES[0]).model
    assert own is not other.view.published.model
    await append(gate, misses(20, seed=1))
    one.keeper.rest = 0.0
    await one.turn()
    await other.keeper.follow()
    assert other.view.epoch == one.view.epoch
    assert other.view.rules(SCOPES[0]).model is own, "the model of all scopes may serve what this scope's refuses"
    await other.keeper.follow()
    newer = other.view.rules(SCOPES[0]).model
    assert newer is not None
    assert newer.labels == 520
    other.view.adopt(replace(other.view.published, state=replace(other.view.published.state, target_error=0.001)))
    assert other.view.rules(SCOPES[0]).model is other.view.published.model, "it allows more than the fleet does now"


async def test_a_round_leaves_no_scope_out_for_good(gate: HealthGatedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SCOPES_OF_A_ROUND", 1)
    one = worker(gate, "one")
    for scope in SCOPES[:2]:
        await append(gate, misses(200), scope)
    store = RedisQuality(gate, KEYS, "one")
    await one.turn()
    assert sum(text is not None for text in await store.of_scopes(SCOPES[:2])) == 1
    one.keeper.rest = 0.0
    await one.turn()
    assert sum(text is not None for text in await store.of_scopes(SCOPES[:2])) == 2


async def test_scopes_that_wait_for_their_models_are_bounded(gate: HealthGatedRedis) -> None:
    one = worker(gate, "one")
    await append(gate, misses(500))
    await one.turn()
    for number in range(keeper.SCOPES + 10):
        one.view.rules(f"another-{number}")
    assert len(one.view.wanted) == keeper.SCOPES


async def test_every_worker_tightens_after_a_fault(gate: HealthGatedRedis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, [*misses(500), *hits(60, 6)])
    await one.turn()
    await other.turn()
    for view in (one.view, other.view):
        assert view.state().level == 1
        assert view.state().target_error == pytest.approx(0.01)
        assert [event.change for event in view.state().history] == ["tightened", "learned"]
    changes = [event.change for event in one.events.seen]
    assert changes == ["tightened", "learned"]


async def test_at_the_last_level_nothing_is_near_enough(gate: HealthGatedRedis) -> None:
    settings = replace(SETTINGS, policy=PolicyName.GUARDED)
    view = worker(gate, "one", settings).view
    state = replace(view.state(), epoch=1, level=LAST_LEVEL)
    view.adopt(Published(state))
    assert view.by_threshold == NEVER
    view.adopt(Published(replace(state, level=1, threshold=0.94)))
    assert view.by_threshold == 0.94


async def test_after_flushall_every_worker_is_guarded_at_once(gate: HealthGatedRedis, redis: Redis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, misses(500))
    await one.turn()
    await other.turn()
    await redis.flushall()
    for each in (other, one):
        await each.keeper.follow()
        assert each.view.published.model is None
        assert each.view.by_threshold == 0.92
    await append(gate, misses(500, 1))
    one.keeper.rest = 0.0
    await one.turn()
    await one.turn()
    assert one.view.published.model is not None, "it learns again"
    assert one.view.state().labels == {"miss": 500}, "without the labels that are gone"


@pytest.mark.parametrize("what", ["embedder", "verifier", "comparator"])
async def test_another_version_is_guarded_at_once(gate: HealthGatedRedis, what: str) -> None:
    one = worker(gate, "one")
    await append(gate, misses(500))
    await one.turn()
    assert one.view.by_threshold is None
    one.versions = replace(VERSIONS, **{what: "another"})
    await one.keeper.follow()
    assert one.view.by_threshold == 0.92
    assert one.view.published.model is None


@pytest.mark.parametrize("what", ["embedder", "verifier", "comparator"])
async def test_another_version_stays_tightened(gate: HealthGatedRedis, what: str) -> None:
    one = worker(gate, "one")
    await append(gate, [*misses(500), *hits(60, 6)])
    await one.turn()
    assert one.view.state().level == 1
    one.versions = replace(VERSIONS, **{what: "another"})
    await one.keeper.follow()
    assert one.view.by_threshold == pytest.approx(0.94)
    assert one.view.state().level == 1
    assert one.view.state().target_error == pytest.approx(0.01)
    await append(gate, misses(10, 1))
    one.keeper.rest = 0.0
    await one.turn()
    assert one.view.state().level == 1, "what the keeper writes next is as tight"


async def test_another_policy_does_not_tighten_again_for_the_same_labels(gate: HealthGatedRedis, redis: Redis) -> None:
    former = worker(gate, "former", replace(SETTINGS, policy=PolicyName.GUARDED))
    await append(gate, hits(60, 6))
    await former.turn()
    assert former.view.state().level == 1
    await redis.delete(KEYS.quality_lease)  # a new release with another policy takes over
    one = worker(gate, "one")
    await one.turn()
    assert one.view.state().policy is PolicyName.VERIFIED
    assert one.view.state().level == 1
    assert one.view.published.changed_ms == former.view.published.changed_ms


async def test_a_worker_that_changes_to_the_fleets_versions_follows_at_once(gate: HealthGatedRedis) -> None:
    """As when its embedder cannot be asked at the start, or when it loads the verifier last."""
    one, late = worker(gate, "one"), worker(gate, "late")
    await append(gate, misses(500))
    await one.turn()
    late.versions = replace(VERSIONS, embedder="")
    await late.keeper.follow()
    assert late.view.published.model is None
    late.versions = VERSIONS
    await late.keeper.follow()
    assert late.view.published == one.view.published


async def test_a_label_that_was_retracted_does_not_count_any_more(gate: HealthGatedRedis, redis: Redis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    store, bad = RedisLabels(gate, KEYS), replace(hits(1, 1)[0], source="feedback", probability=1.0)
    names = [await store.add(SCOPES[0], "t", bad) for _ in range(2)]
    await append(gate, misses(500))
    await one.turn()
    assert one.view.state().labels == {"feedback": 2, "miss": 500}
    await store.retract(SCOPES[0], names[0])
    one.keeper.rest = 0.0
    await one.turn()
    await other.keeper.follow()
    assert other.view.state().labels == one.view.state().labels == {"feedback": 1, "miss": 500}
    await redis.delete(KEYS.quality_lease)  # another worker reads all labels, and what was retracted long ago
    await append(gate, misses(1))
    await other.turn()
    assert other.view.state().labels == {"feedback": 1, "miss": 501}


async def test_only_the_leases_holder_writes(gate: HealthGatedRedis, redis: Redis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, misses(500))
    await one.turn()
    epoch = one.view.epoch
    await append(gate, misses(10, 2))
    await other.turn()
    assert other.view.epoch == epoch, "the other has no lease"
    store = RedisQuality(gate, KEYS, "other")
    assert await store.publish(epoch, published_as_json(Published()), {}) is None


async def test_a_keeper_that_was_paused_does_not_undo_anothers_work(gate: HealthGatedRedis, redis: Redis) -> None:
    paused, other = worker(gate, "paused"), worker(gate, "other")
    await append(gate, misses(500))
    await paused.turn()
    await redis.delete(KEYS.quality_lease)  # it expires while the keeper is paused
    await append(gate, hits(60, 6))
    await other.turn()
    assert other.view.state().level == 1
    written = await redis.hgetall(KEYS.quality)
    await paused.keeper.learn()
    assert await redis.hgetall(KEYS.quality) == written
    await redis.delete(KEYS.quality_lease)
    await paused.turn()
    assert paused.view.state().level == 1, "it begins again with what the other wrote"
    stale = RedisQuality(gate, KEYS, "paused")
    assert await stale.publish(1, published_as_json(Published()), {}) is None, "the epoch has changed, too"


async def test_a_slow_keeper_keeps_its_lease(gate: HealthGatedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LEASE_SECONDS", 0.3)
    one, taken, renewed = worker(gate, "one"), list[float](), threading.Event()
    acquire = one.lease.acquire

    async def counted(seconds: float) -> bool:
        taken.append(seconds)
        if len(taken) > 5:
            renewed.set()
        return await acquire(seconds)

    def slow(*asked: Any) -> Assessment:
        assert renewed.wait(60), "a round that takes longer than the lease"
        return assess(*asked)

    monkeypatch.setattr(one.lease, "acquire", counted)
    monkeypatch.setattr(keeper, "assess", slow)
    await append(gate, misses(300))
    await one.turn()
    assert one.view.published.model is not None


async def test_a_keeper_rests_after_a_write_that_redis_refuses(
    gate: HealthGatedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, rounds = worker(gate, "one"), list[int]()

    async def refused(*_: Any) -> None:
        raise StoreUnavailable("Redis is full")

    def counted(*asked: Any) -> Assessment:
        rounds.append(1)
        return assess(*asked)

    monkeypatch.setattr(RedisQuality, "publish", refused)
    monkeypatch.setattr(keeper, "assess", counted)
    monkeypatch.setattr(keeper, "SHARE", 0.0001)
    await append(gate, misses(300))
    with pytest.raises(StoreUnavailable):
        await one.turn()
    await one.turn()
    assert rounds == [1]


async def test_a_new_keeper_goes_on_where_the_last_one_was_killed(gate: HealthGatedRedis, redis: Redis) -> None:
    one, other = worker(gate, "one"), worker(gate, "other")
    await append(gate, [*misses(500), *hits(60, 6)])
    await one.turn()
    await redis.delete(KEYS.quality_lease)
    await append(gate, misses(10, 3))
    await other.turn()
    assert other.view.state().level == 1, "the same labels do not tighten twice"
    assert len(other.view.state().history) == 2


async def test_a_tenant_cannot_loosen_the_policy_of_another_by_feedback(gate: HealthGatedRedis) -> None:
    one = worker(gate, "one")
    await append(gate, misses(500))
    await one.turn()
    before = one.view.published.model
    assert before is not None
    praise = [replace(label, source="feedback", verdict=Verdict.SAME) for label in misses(2000, 5)]
    await append(gate, praise, SCOPES[1], "liar")
    one.keeper.rest = 0.0
    await one.turn()
    after = one.view.published.model
    assert after is not None
    assert after.coefficients == pytest.approx(before.coefficients, rel=0.05)
    assert after.level <= before.level * 1.05
    assert one.view.rules(SCOPES[1]).model is after


async def test_all_keys_have_a_lifetime(gate: HealthGatedRedis, redis: Redis) -> None:
    await append(gate, misses(500))
    await worker(gate, "one").turn()
    names = [name async for name in redis.scan_iter("rag:quality*")]
    assert sorted(names) == sorted(
        name.encode() for name in (KEYS.quality, KEYS.quality_lease, KEYS.quality_of(SCOPES[0]))
    )
    assert all([await redis.pttl(name) > 0 for name in names])


async def test_on_a_cluster_its_keys_share_a_slot() -> None:
    keys = Keys(cluster=True, cache_partitions=4)
    names = [keys.quality, keys.quality_lease, keys.quality_of("a"), keys.labels]
    assert {name[name.index("{") : name.index("}") + 1] for name in names} == {"{labels}"}
