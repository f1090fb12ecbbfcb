"""What a worker remembers about refused requests."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

from api.errors import RateLimited
from api.ports.limits import Charge, LimitPlan, Limits
from api.query.limits import Limiter
from api.query.refusals import (
    MOST_WAITING,
    REMEMBERED_SECONDS,
    RETRY_SECONDS,
    SEARCH_SECONDS,
    SEARCH_SHARE,
    Refusals,
    SearchTurns,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Stands for Redis: refuses everything for `wait` seconds."""

    wait = 60.0
    asked = 0
    is_full = True

    async def admit(self, charge: Charge) -> None:
        self.asked += 1
        charge.decide(self.wait, [0, 60])

    async def open_stream(self, plan: LimitPlan, stream: str) -> str | None:
        return plan.streams[0][0] if self.is_full else None

    async def close_stream(self, plan: LimitPlan, stream: str) -> None:
        """Does nothing."""


PLAN = LimitPlan("acme", ("k", Limits(1)))


def limiter_of(store: Any, counted: list[tuple[str, str]] | None = None) -> Limiter:
    noted = [] if counted is None else counted
    return Limiter(store, lambda: 1, lambda limit, outcome: noted.append((limit, outcome)))


def decided(wait: float, at: float = 1000.0, plan: LimitPlan = PLAN) -> Charge:
    charge = Charge(plan, counts_hits=True)
    charge.is_sent, charge.asked_at = True, at
    charge.decide(wait, [0, 60])
    return charge


def recalled(refusals: Refusals, plan: LimitPlan = PLAN) -> Charge:
    charge = Charge(plan, counts_hits=True)
    refusals.recall(charge)
    return charge


def test_a_refusal_counts_until_its_wait_is_over_and_tells_what_is_left_of_it() -> None:
    clock = Clock()
    refusals = Refusals(clock=clock)
    assert not recalled(refusals).is_refused
    refusals.note(decided(0.5, at=999.9))
    clock.now = 1000.3
    found, again = recalled(refusals), refusals.find(PLAN)
    for charge in (found, again):
        assert charge is not None
        assert charge.decision is not None
        assert charge.decision.wait == pytest.approx(0.1)
        assert charge.headers[1] == (b"ratelimit", b'"key-requests";r=0;t=60')
    clock.now = 1000.4
    assert (refusals.find(PLAN), recalled(refusals).is_refused) == (None, False), "the place is free"


def test_after_a_second_one_request_asks_and_the_others_are_refused_until_it_knows() -> None:
    clock = Clock()
    refusals = Refusals(clock=clock)
    refusals.note(decided(86_400))
    clock.now += REMEMBERED_SECONDS
    asking = recalled(refusals)
    assert (asking.is_refused, recalled(refusals).is_refused) == (False, True)
    refusals.recall(asking)
    assert not asking.is_refused, "it has to ask, however often it is tried"
    clock.now += RETRY_SECONDS
    assert not recalled(refusals).is_refused, "the first has no decision yet"
    refusals.note(decided(0, at=clock.now))
    assert refusals.find(PLAN) is None, "an operator has reset the counts"


def test_a_recalled_refusal_does_not_make_the_memory_longer() -> None:
    clock = Clock()
    refusals = Refusals(clock=clock)
    refusals.note(decided(60))
    clock.now += 0.9
    refusals.note(recalled(refusals))
    clock.now += 0.1
    assert refusals.find(PLAN) is None


def test_other_limits_of_the_same_key_are_asked() -> None:
    refusals = Refusals(clock=Clock())
    refusals.note(decided(60))
    assert refusals.find(LimitPlan("acme", ("k", Limits(2)))) is None


def test_what_was_charged_before_is_not_refused_later() -> None:
    refusals = Refusals(clock=Clock())
    sent, granted = Charge(PLAN, counts_hits=True), decided(0)
    sent.is_sent = True
    refusals.note(decided(60))
    for charge in (sent, granted):
        refusals.recall(charge)
        assert not charge.is_refused


def test_the_memory_is_bounded() -> None:
    refusals = Refusals(most=2, clock=Clock())
    plans = [LimitPlan("acme", (name, Limits(1))) for name in "abc"]
    for plan in plans:
        refusals.note(decided(60, plan=plan))
    assert [refusals.find(plan) is not None for plan in plans] == [False, True, True]


async def test_a_worker_asks_redis_once_for_many_refused_requests() -> None:
    store = Store()
    counted: list[tuple[str, str]] = []
    limiter = limiter_of(store, counted)
    for _ in range(5):
        with pytest.raises(RateLimited, match="key-requests"):
            await limiter.settle(Charge(PLAN, counts_hits=True))
    assert store.asked == 1
    assert counted.count(("key-requests", "refused")) == 5


async def test_searches_of_a_refused_plan_run_one_at_a_time_and_rest_in_between() -> None:
    clock = Clock()
    turns = SearchTurns(clock=clock)
    running: list[str] = []
    ended = asyncio.Event()

    async def search(name: str) -> None:
        async with turns.turn(PLAN) as may_search:
            running.append(f"{name} {may_search}")
            await ended.wait()

    tasks = [asyncio.create_task(search(str(number))) for number in range(MOST_WAITING + 1)]
    while len(running) < 2:
        await asyncio.sleep(0)
    assert running == [f"{MOST_WAITING} False", "0 True"] or running == ["0 True", f"{MOST_WAITING} False"]
    clock.now += 0.5
    ended.set()
    await tasks[0]
    other = LimitPlan("globex", ("k", Limits(1)))
    async with turns.turn(other) as may_search:
        assert may_search, "another tenant does not wait"
    assert len(running) == 2, "it rests"
    clock.now += 0.5 / SEARCH_SHARE
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with turns.turn(PLAN) as may_search:
        assert may_search, "a caller that leaves gives its turn back"


async def test_only_requests_beyond_a_limit_wait_for_a_turn() -> None:
    clock = Clock()
    limiter = limiter_of(Store())
    limiter.refusals = Refusals(clock=clock)
    charge = Charge(PLAN, counts_hits=False)
    assert isinstance(limiter.search_turn(charge, streams=False), nullcontext)
    limiter.refusals.note(decided(60))
    assert not isinstance(limiter.search_turn(charge, streams=False), nullcontext)


async def test_searches_stay_limited_while_a_request_asks_again() -> None:
    clock = Clock()
    limiter = limiter_of(Store())
    limiter.refusals = Refusals(clock=clock)
    charge = Charge(PLAN, counts_hits=False)
    limiter.refusals.note(decided(60))
    clock.now += REMEMBERED_SECONDS
    assert limiter.refusals.find(PLAN) is None, "Redis is asked, but only after the search"
    assert not isinstance(limiter.search_turn(charge, streams=False), nullcontext)
    limiter.refusals.note(decided(0, at=clock.now))
    assert isinstance(limiter.search_turn(charge, streams=False), nullcontext), "an operator has reset the counts"


@pytest.mark.parametrize(("wait", "seconds"), [(0.5, 0.5), (86_400, SEARCH_SECONDS)])
async def test_searches_stay_limited_no_longer_than_the_refusal_and_some_seconds(wait: float, seconds: float) -> None:
    clock = Clock()
    refusals = Refusals(clock=clock)
    refusals.note(decided(wait))
    clock.now = 1000 + 0.99 * seconds
    assert refusals.limits_searches(PLAN)
    clock.now = 1000 + seconds
    assert not refusals.limits_searches(PLAN), "a client whose questions all have answers is never charged"


async def test_streams_beyond_a_limit_wait_for_a_turn() -> None:
    store = Store()
    limiter = limiter_of(store)
    plan = LimitPlan("acme", ("k", Limits(concurrent_streams=1)))
    charge = Charge(plan, counts_hits=True)
    assert isinstance(limiter.search_turn(charge, streams=True), nullcontext)
    with pytest.raises(RateLimited, match="key-streams"):
        await limiter.stream(charge).__aenter__()
    assert not isinstance(limiter.search_turn(charge, streams=True), nullcontext)
    assert isinstance(limiter.search_turn(charge, streams=False), nullcontext)
    store.is_full = False
    async with limiter.stream(charge):
        assert isinstance(limiter.search_turn(charge, streams=True), nullcontext), "there was room"
    await limiter.aclose()
