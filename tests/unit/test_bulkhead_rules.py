"""The pure rules of the bulkhead. `tests/integration/test_bulkhead_equivalence.py` compares the scripts with them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bulkhead import bulkhead_rules as rules
from api.bulkhead.bulkhead_rules import (
    AcquireResult,
    BatchShare,
    BulkheadPolicy,
    BulkheadReading,
    WaitQueue,
    local_ticket,
    place,
    promoted,
    tenant_field,
    tenant_of,
)
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.errors import StoreUnavailable
from api.values import Priority, QueuePlace
from tests.support.waiting import wait_until_async

LIMIT, MAX_QUEUE = 2, 4


def ticket(tenant: str, number: int, priority: str = "user") -> str:
    return f"{priority} {tenant_field(tenant)} {number:016d} w 00"


def line_of(*tickets: str, held: int = LIMIT, **more: object) -> WaitQueue:
    return WaitQueue(frozenset(ticket("held", number) for number in range(held)), tuple(sorted(tickets)), **more)  # type: ignore[arg-type]


def order(line: WaitQueue) -> list[str]:
    """Returns the tenants in the order in which they are served, one at a time."""
    served: list[str] = []
    limit = len(line.held) + 1
    while line.queue:
        line, granted = rules.hand_out(line, limit)
        assert len(granted) == 1
        served.append(tenant_of(granted[0]))
        line, _ = rules.give(line, 0, granted[0], -1)
    return served


def test_a_free_permit_is_granted_and_one_more_waits() -> None:
    line, verdict, _ = rules.take(line_of(held=1), LIMIT, MAX_QUEUE, ticket("a", 1))
    assert verdict is AcquireResult.GRANTED
    line, verdict, _ = rules.take(line, LIMIT, MAX_QUEUE, ticket("a", 2))
    assert (verdict, line.queue) == (AcquireResult.QUEUED, (ticket("a", 2),))


def test_a_returned_permit_goes_to_the_next_in_the_queue() -> None:
    line, granted = rules.give(line_of(ticket("a", 1), ticket("a", 2)), LIMIT, ticket("held", 0), 100)
    assert granted == (ticket("a", 1),)
    assert line.held == {ticket("held", 1), ticket("a", 1)}


def test_tenants_take_turns_and_within_one_the_oldest_goes_first() -> None:
    flood = [ticket("b", number) for number in range(4)]
    line = line_of(*flood, ticket("a", 90), ticket("c", 91), ticket("c", 92), turns={Priority.USER: "a"})
    assert order(line) == ["b", "c", "a", "b", "c", "b", "b"]
    assert rules.following(line_of(*flood)) == flood[0]


def test_fair_turns_hold_for_any_tenant_names() -> None:
    names = ["a", "a-2", "a b", "a!", "ä", "a/b", "%61", " "]
    line = line_of(*(ticket(name, number) for name in names for number in range(2)))
    served = order(line)
    assert sorted(served[: len(names)]) == sorted(served[len(names) :]) == sorted(names)


def test_background_work_waits_behind_every_user() -> None:
    line = line_of(ticket("a", 1, "background"), ticket("z", 8), ticket("z", 9))
    assert order(line) == ["z", "z", "a"]


def test_a_full_queue_rejects_a_caller_without_priority() -> None:
    full = line_of(*(ticket(name, number) for name in "ab" for number in range(2)))
    for newcomer in (ticket("a", 9), ticket("c", 9, "background")):
        line, verdict, victim = rules.take(full, LIMIT, MAX_QUEUE, newcomer)
        assert (line, verdict, victim) == (full, AcquireResult.REJECTED, None)


def test_a_full_queue_evicts_from_the_longest_tenant_queue() -> None:
    full = line_of(*(ticket("flood", number) for number in range(4)))
    line, verdict, victim = rules.take(full, LIMIT, MAX_QUEUE, ticket("small", 9))
    assert (verdict, victim, len(line.queue)) == (AcquireResult.QUEUED, ticket("flood", 3), 4)


def test_background_work_is_evicted_for_a_user() -> None:
    full = line_of(*(ticket("a", number) for number in range(3)), ticket("warm-up", 0, "background"))
    _, verdict, victim = rules.take(full, LIMIT, MAX_QUEUE, ticket("a", 9))
    assert (verdict, victim) == (AcquireResult.QUEUED, ticket("warm-up", 0, "background"))


def test_without_a_queue_nobody_waits() -> None:
    assert rules.take(line_of(), LIMIT, 0, ticket("a", 1))[1] is AcquireResult.REJECTED


def test_a_call_that_does_not_queue_takes_a_free_permit_or_nothing_and_displaces_nobody() -> None:
    assert rules.take(line_of(held=1), LIMIT, rules.NO_QUEUE, ticket("a", 1))[1] is AcquireResult.GRANTED
    waiting = line_of(*(ticket("a", number) for number in range(4)))
    assert rules.take(waiting, LIMIT, rules.NO_QUEUE, ticket("b", 9)) == (waiting, AcquireResult.REJECTED, None)


def test_leaving_the_queue_frees_no_permit() -> None:
    line, granted = rules.give(line_of(ticket("a", 1), ticket("b", 2)), LIMIT, ticket("a", 1), -1)
    assert (granted, line.queue, line.service_ms) == ((), (ticket("b", 2),), 0)


def test_the_expected_wait_comes_from_a_moving_mean_of_the_service_time() -> None:
    line, _ = rules.give(line_of(), LIMIT, ticket("held", 0), 1_000)
    assert line.service_ms == 1_000
    line, _ = rules.give(line, LIMIT, ticket("held", 1), 2_000)
    assert line.service_ms == pytest.approx(1_100)
    assert rules.retry_after(1_100, waiting=3, limit=2) == pytest.approx(2.2)


@given(st.text(min_size=1))
def test_a_ticket_keeps_its_tenant_whatever_its_name(tenant: str) -> None:
    made = local_ticket(Priority.BACKGROUND, tenant, "host-1-ab")
    assert place(made)[0] is Priority.BACKGROUND
    assert tenant_of(made) == tenant.encode(errors="replace").decode()
    assert made.isascii()
    assert len(made.split(" ")) == 5


def test_waiting_callers_are_counted_by_tenant() -> None:
    reading = BulkheadReading(2, (ticket("a b", 1), ticket("a b", 2), ticket("c", 1)))
    assert reading.waiting_by_tenant == {"a b": 2, "c": 1}


def test_tickets_of_a_later_release_are_counted_by_tenant() -> None:
    reading = BulkheadReading(0, (ticket("acme", 1), ticket("acme", 2, "urgent")))
    assert reading.waiting_by_tenant == {"acme": 2}
    assert reading.waiting_by_priority == {"user": 1, "batch": 0, "background": 0}


def test_a_reserved_permit_is_only_for_users() -> None:
    held = frozenset({ticket("b", 1, "background")})
    line, verdict, _ = rules.take(WaitQueue(held), LIMIT, MAX_QUEUE, ticket("b", 2, "background"), reserve=1)
    assert verdict is AcquireResult.QUEUED
    line, verdict, _ = rules.take(line, LIMIT, MAX_QUEUE, ticket("a", 3), reserve=1)
    assert verdict is AcquireResult.GRANTED, "nobody before it waits for that permit"
    line, granted = rules.give(line, LIMIT, ticket("a", 3), 10, reserve=1)
    assert granted == ()
    line, granted = rules.give(line, LIMIT, ticket("b", 1, "background"), 10, reserve=1)
    assert granted == (ticket("b", 2, "background"),)


def test_a_tenant_with_its_share_is_passed_over_and_others_take_the_free_permit() -> None:
    line = WaitQueue(frozenset({ticket("flood", 0)}))
    line, verdict, _ = rules.take(line, LIMIT, MAX_QUEUE, ticket("flood", 1), most=1)
    assert (verdict, len(line.held)) == (AcquireResult.QUEUED, 1)
    line, verdict, _ = rules.take(line, LIMIT, MAX_QUEUE, ticket("small", 2), most=1)
    assert verdict is AcquireResult.GRANTED, "the flood before it may not have the permit"
    line, granted = rules.give(line, LIMIT, ticket("small", 2), 10, most=1)
    assert granted == ()
    line, granted = rules.give(line, LIMIT, ticket("flood", 0), 10, most=1)
    assert granted == (ticket("flood", 1),)
    assert rules.following(line, most=1) is None


@pytest.mark.parametrize(("limit", "share", "most"), [(4, 1.0, 4), (4, 0.75, 3), (4, 0.1, 1), (3, 0.7, 2), (1, 0.5, 1)])
def test_a_share_is_rounded_down_but_never_to_nothing(limit: int, share: float, most: int) -> None:
    assert rules.most_permits(limit, share) == most


@given(
    st.integers(0, LIMIT - 1), st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=40)
)
def test_the_limits_always_hold_and_nobody_waits_while_a_permit_is_free(
    reserve: int, steps: list[tuple[str, bool, bool]]
) -> None:
    line = WaitQueue()
    for number, (tenant, background, gives) in enumerate(steps):
        if gives and line.held:
            line, _ = rules.give(line, LIMIT, min(line.held), 10, reserve)
        else:
            new = ticket(tenant, number, "background" if background else "user")
            line, verdict, _ = rules.take(line, LIMIT, MAX_QUEUE, new, reserve)
            assert (verdict is AcquireResult.REJECTED) == (new not in line.held and new not in line.queue)
        behind = [one for one in line.held if place(one)[0] is Priority.BACKGROUND]
        waiting = {place(one)[0] for one in line.queue}
        assert len(line.held) <= LIMIT
        assert len(behind) <= LIMIT - reserve
        assert len(line.queue) <= MAX_QUEUE
        assert Priority.USER not in waiting or len(line.held) == LIMIT
        assert not waiting or len(line.held) == LIMIT or len(behind) == LIMIT - reserve
        assert list(line.queue) == sorted(set(line.queue) - line.held)


queues = st.lists(
    st.tuples(st.sampled_from(list(Priority)), st.sampled_from(["a", "a-2", "ä b", "z"]), st.integers(0, 10**9)),
    unique=True,
    max_size=30,
).map(lambda calls: [ticket(tenant, number, priority) for priority, tenant, number in calls])
turns = st.dictionaries(st.sampled_from(list(Priority)), st.sampled_from(["a", "a-2", "m", "z"]))


@given(queue=queues, turns=turns)
def test_positions_are_the_order_in_which_permits_are_given(queue: list[str], turns: dict[Priority, str]) -> None:
    line = line_of(*queue, held=0, turns=turns)
    _, served = rules.hand_out(line, len(queue))
    assert rules.positions(line) == {one: number for number, one in enumerate(served, start=1)}
    assert [place(one)[0] for one in served] == sorted((place(one)[0] for one in queue), key=list(Priority).index)


@given(queue=queues, turns=turns)
def test_a_promoted_call_waits_behind_no_batch_call(queue: list[str], turns: dict[Priority, str]) -> None:
    batch = [one for one in queue if place(one)[0] is Priority.BATCH]
    for one in batch:
        others = [other for other in queue if other != one]
        line = line_of(*others, promoted(one), turns=turns)
        users = [other for other in others if place(other)[0] is Priority.USER]
        assert rules.positions(line)[promoted(one)] <= len(users) + 1


def test_an_overdue_batch_call_goes_first_once_in_the_time() -> None:
    second = 1_000_000
    waiting = [ticket("a", 70 * second), ticket("b", 10 * second, "batch"), ticket("c", 11 * second, "batch")]
    line = line_of(*waiting)
    line, granted = rules.give(line, LIMIT, ticket("held", 0), 100, share=BatchShare(19 * second, 10 * second))
    assert granted == (waiting[0],), "it has not waited for 10 s"
    line = line_of(*waiting)
    line, granted = rules.give(line, LIMIT, ticket("held", 0), 100, share=BatchShare(71 * second, 10 * second))
    assert granted == (waiting[1],)
    line, granted = rules.give(line, LIMIT, ticket("held", 1), 100, share=BatchShare(72 * second, 10 * second))
    assert granted == (waiting[0],), "the next batch call has to wait, however old it is"
    line, granted = rules.give(line, LIMIT, waiting[0], 100, share=BatchShare(73 * second, 10 * second))
    assert granted == (waiting[2],), "without users batch calls wait for nothing"


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.integers(1, 3 * 10**6), min_size=50, max_size=100))
def test_batch_calls_take_a_bounded_share_and_never_starve(gaps: list[int]) -> None:
    """Under an endless load of users, one batch call starts every 10 s, and not more."""
    after, now, started = 10_000_000, 0, [0]
    line = line_of(*(ticket(f"t{number}", number, "batch") for number in range(60)), ticket("a", 1), held=1)
    for number, gap in enumerate(gaps):
        now += gap
        line, granted = rules.give(line, 1, next(iter(line.held)), 100, share=BatchShare(now, after))
        if place(granted[0])[0] is Priority.BATCH:
            assert now - started[-1] >= after
            started.append(now)
        else:
            line, _, _ = rules.take(line, 1, 1000, ticket("a", 2 + number))
        assert now - started[-1] <= after + gap, "it starts with the first permit that is free after 10 s"


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(1, 4), st.lists(st.integers(100, 120_000), min_size=60, max_size=60))
def test_long_batch_calls_leave_users_most_of_the_time(limit: int, lengths: list[int]) -> None:
    """However long calls take, batch calls that go first hold one permit, for a quarter of all time."""
    line = line_of(
        *(ticket("a", number) for number in range(99)), *(ticket("b", number, "batch") for number in range(99)), held=0
    )
    line, started = rules.hand_out(line, limit)
    now, began, ends, batch_ms = 0, dict[str, int](), dict[str, int](), 0
    for length in lengths:
        began.update(dict.fromkeys(started, now))
        ends.update(dict.fromkeys(started, now + length))
        assert sum(one.startswith("batch") for one in line.held) <= 1
        ended = min(ends, key=ends.__getitem__)
        now = ends.pop(ended)
        held = now - began[ended]
        batch_ms += held if ended.startswith("batch") else 0
        line, started = rules.give(line, limit, ended, held, share=BatchShare(now * 1000, 10_000_000))
    assert batch_ms <= limit * now / 4 + max(lengths)


def test_the_weakest_priority_gives_way_in_a_full_queue() -> None:
    queue = [ticket("a", 1), ticket("b", 2, "batch"), ticket("b", 3, "batch"), ticket("c", 4, "background")]
    assert rules.displaced(sorted(queue), ticket("d", 5)) == queue[3]
    assert rules.displaced(sorted(queue), ticket("d", 5, "batch")) == queue[3]
    assert rules.displaced(sorted(queue[:3]), ticket("d", 5)) == queue[2]
    assert rules.displaced(sorted(queue), ticket("d", 5, "background")) is None


def test_the_estimate_follows_the_measured_time_and_is_unknown_without_one() -> None:
    assert rules.estimated_seconds(0.0, 3, 2) is None
    assert rules.estimated_seconds(4_000, 3, 2) == 6.0


class NoRedis:
    """A store that cannot be reached."""

    async def take(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("no Redis here")

    give = renew_leases = read = take


async def called(bulkhead: FleetBulkhead, name: str, place: QueuePlace, served: list[str]) -> None:
    async with bulkhead.permit("acme", place=place):
        served.append(name)


async def test_without_redis_the_same_order_positions_and_promotion_hold() -> None:
    bulkhead = FleetBulkhead("ollama", BulkheadPolicy(limit=1), NoRedis(), "w")  # type: ignore[arg-type]
    places = [QueuePlace(kind) for kind in (Priority.BATCH, Priority.BATCH, Priority.USER)]
    served: list[str] = []
    async with bulkhead.permit("acme"):
        calls = []
        for name, place_in_queue in zip(("first", "second", "user"), places, strict=True):
            calls.append(asyncio.create_task(called(bulkhead, name, place_in_queue, served)))
            await wait_until_async(partial(is_waiting, bulkhead, len(calls)))
        await bulkhead.renew_leases()
        assert [one.position for one in places] == [2, 3, 1]
        places[1].promote()
        await bulkhead.renew_leases()
        assert bulkhead.waiting_by_priority == {"user": 2, "batch": 1, "background": 0}
        assert [one.position for one in places] == [3, 1, 2], "it asked before the user"
    await asyncio.gather(*calls)
    assert served == ["second", "user", "first"]
    assert {one.position for one in places} == {None}, "who joins them now is not told of a queue"
    assert (bulkhead.in_use, bulkhead.waiting) == (0, 0)
    await bulkhead.aclose()


async def is_waiting(bulkhead: FleetBulkhead, calls: int) -> bool:
    return bulkhead.waiting == calls
