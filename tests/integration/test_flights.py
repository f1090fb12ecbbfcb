"""Single flight between workers on a real Redis. Each worker is an object with its own connection."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.errors import UpstreamError, UpstreamFault
from api.ports.answer_cache import Claim, NewAnswer
from api.ports.coordination import UNKNOWN, AnswerOutput, FlightSubscription, GenerateAnswer
from api.ports.telemetry import Telemetry
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.redis_store.stores.flights import RedisFlightStore
from api.single_flight.buffer import AnswerBuffer, Flight
from api.single_flight.fleet_flights import FleetFlights, running_flights
from api.single_flight.flight import LEASE_MS, FlightRole
from api.values import CompletedAnswer, FlightKey, QueuePlace, Source, StoredElsewhere, Token, Usage
from tests.support.replies import raw, text, texts
from tests.support.waiting import wait_until_async

KEY = FlightKey("0123456789-scope", "digest")
HASH = "rag:flight:{0123456789-scope:digest}"


class Model:
    """Generates "one two three", and the last word only when released. Counts its calls."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.claims: list[Claim | None] = []
        self.may_end = asyncio.Event()
        self.error: Exception | None = None
        self.text = "one two three"

    async def __call__(self, output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        self.begun += 1
        self.claims.append(claim)
        words = self.text.split()
        try:
            for word in words[:-1]:
                await output.write(f"{word} ")
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        await output.write(words[-1])
        return CompletedAnswer(self.text, "llama3.2", Usage(1, 3), entry="rag:cache:x")


class Counts(Telemetry):
    """What went amiss, in its order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def flight_handed_over(self) -> None:
        self.seen.append("handed_over")

    def flight_alone(self) -> None:
        self.seen.append("alone")

    def flight_fenced(self) -> None:
        self.seen.append("fenced")


class Worker:
    """One worker of the fleet. `vanish` simulates SIGKILL: it sends and renews nothing from then on."""

    def __init__(self, gate: HealthGatedRedis, flights: FleetFlights, stack: AsyncExitStack, counts: Counts) -> None:
        self.gate = gate
        self.flights = flights
        self.counts = counts
        self.model = Model()
        self._stack = stack

    async def ask(self, *, buffered: bool = True, asked_ms: int = 0) -> tuple[str, bool]:
        """Returns the answer's text, from its tokens or its end, and whether this caller led."""
        async with self.flights.join(KEY, self.model, asked_ms=asked_ms, buffered=buffered) as flight:
            return await read(flight)

    async def leave(self) -> None:
        await self._stack.aclose()


async def read(flight: FlightSubscription) -> tuple[str, bool]:
    text = ""
    while isinstance(event := await anext(flight), Token):
        text += event.text
    if isinstance(event, StoredElsewhere):
        return "stored", flight.led
    assert isinstance(event, CompletedAnswer)
    assert not text or text == event.text
    return event.text, flight.led


Fleet = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def fleet(redis: Redis, redis_url: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as everything:

        async def start(name: str, patience: float = 30.0) -> Worker:
            stack = await everything.enter_async_context(AsyncExitStack())
            address = RedisAddress(redis_url, 1.0, 1.0, 8)
            gate = HealthGatedRedis(await stack.enter_async_context(short_commands(address)), 8)
            await gate.check()
            store = RedisFlightStore(gate, partial(blocking_reader, address), Keys(), name)
            counts = Counts()
            flights = await stack.enter_async_context(running_flights(FleetFlights(store, patience, counts)))
            return Worker(gate, flights, stack, counts)

        yield start


def follows(worker: Worker) -> bool:
    """Returns whether it is registered as a follower."""
    return any(flight.place for flight in worker.flights._flights.values())


async def until(condition: Callable[[], Any]) -> None:
    async def holds() -> bool:
        return bool(condition())

    await wait_until_async(holds)


async def followed(redis: Redis, by: int = 1) -> None:
    async def is_followed() -> bool:
        return sum(name.startswith("follower:") for name in texts(await redis.hkeys(HASH))) == by

    await wait_until_async(is_followed)


async def nothing_left(redis: Redis, *workers: Worker) -> None:
    async def is_clean() -> bool:
        return not await redis.exists(HASH) and not any(len(worker.flights) for worker in workers)

    await wait_until_async(is_clean)


async def test_one_generation_for_all_here_and_elsewhere(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    here = [asyncio.create_task(one.ask()) for _ in range(10)]
    await until(lambda: one.model.begun)
    there = [asyncio.create_task(other.ask(buffered=number % 2 == 0)) for number in range(10)]
    await followed(redis)
    one.model.may_end.set()
    answers = await asyncio.gather(*here, *there)
    assert {text for text, _ in answers} == {"one two three"}
    assert [led for _, led in answers].count(True) == 1
    assert answers[0][1]
    assert (one.model.begun, other.model.begun) == (1, 0)
    await nothing_left(redis, one, other)


async def test_words_come_to_others_before_the_end(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    async with other.flights.join(KEY, other.model, asked_ms=0, buffered=False) as flight:
        first = await asyncio.wait_for(anext(flight), 5)
        assert isinstance(first, Token)
        assert "one two three".startswith(first.text)
        assert not one.model.may_end.is_set()
        one.model.may_end.set()
        assert first.text + (await read_rest(flight)) == "one two three"
    await leading
    assert await redis.ttl(f"{HASH}:words") > 0


async def read_rest(flight: FlightSubscription) -> str:
    text = ""
    while isinstance(event := await anext(flight), Token):
        text += event.text
    return text


class Early:
    """Counts the permits that were asked for early, and those that were returned."""

    def __init__(self) -> None:
        self.asked = 0
        self.returned = 0

    def __call__(self, place: QueuePlace) -> None:
        self.asked += 1
        place.early = self

    def withdraw(self) -> None:
        self.returned += 1


async def test_only_who_leads_keeps_the_permit_that_was_asked_for_early(fleet: Fleet) -> None:
    one, other = await fleet("one"), await fleet("other")
    of_one, of_other = Early(), Early()

    async def ask(worker: Worker, early: Early) -> None:
        async with worker.flights.join(KEY, worker.model, asked_ms=0, buffered=True, early=early) as flight:
            await read(flight)

    calls = [asyncio.create_task(ask(one, of_one))]
    await until(lambda: one.model.begun)
    calls.append(asyncio.create_task(ask(one, of_one)))
    calls.append(asyncio.create_task(ask(other, of_other)))
    await until(lambda: follows(other))
    assert (of_one.asked, of_one.returned, of_other.asked, of_other.returned) == (1, 0, 1, 1)
    one.model.may_end.set()
    await asyncio.gather(*calls)
    await until(lambda: not len(one.flights))
    assert (of_one.asked, of_one.returned) == (1, 1), "this model has not taken it over"


async def test_nothing_is_published_while_nobody_follows(fleet: Fleet, redis: Redis) -> None:
    one = await fleet("one")
    one.model.may_end.set()
    await one.ask()

    async def has_landed() -> bool:
        keys = [key async for key in redis.scan_iter("rag:flight:*")]
        assert set(keys) <= {b"rag:flight:{0123456789-scope:digest}"}, "the lease, and nothing for followers"
        return not keys

    await wait_until_async(has_landed)


def storing(worker: Worker) -> GenerateAnswer:
    """Generates as the worker's model does, and stores the answer."""
    keys, gate = Keys(), worker.gate
    indexes, counters = SemanticIndexes(gate, keys), CacheCounters(gate, keys, "w")
    cache = RedisAnswerCache(gate, keys, indexes, counters, ttl_ms=60_000, stale_ms=0, max_size=9)

    async def generate(output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        answer = await worker.model(output, claim)
        assert await cache.store(*KEY, None, NewAnswer("q", answer.text, "m", "t"), claim=claim) is not None
        return answer

    return generate


async def never(*_: object) -> None:
    raise AssertionError("it has ended")


async def test_storing_the_answer_ends_a_flight_that_nobody_follows(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await fleet("one")
    monkeypatch.setattr(one.flights.store, "end", never)
    one.model.may_end.set()
    there: list[int] = []

    async def generate(output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        answer = await storing(one)(output, claim)
        there.append(await redis.exists(HASH))
        await one.flights.renew_leases()
        there.append(await redis.exists(HASH))
        return answer

    async with one.flights.join(KEY, generate, asked_ms=0, buffered=True) as flight:
        assert await read(flight) == ("one two three", True)
    await nothing_left(redis, one)
    assert there == [0, 0]
    assert one.counts.seen == []


async def test_storing_the_answer_ends_a_refresh(fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await fleet("one")
    one.model.may_end.set()
    monkeypatch.setattr(one.flights.store, "release", never)
    async with one.flights.exclusive(KEY) as claim:
        assert claim is not None
        await storing(one)(AnswerBuffer(), claim)
        assert not await redis.exists(claim.key)


async def test_followers_hear_the_end_of_a_flight_whose_answer_is_stored(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    there: list[int] = []

    async def generate(output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        answer = await storing(one)(output, claim)
        there.append(await redis.exists(HASH))
        return answer

    async with one.flights.join(KEY, generate, asked_ms=0, buffered=True) as flight:
        leading = asyncio.create_task(read(flight))
        await until(lambda: one.model.begun)
        following = asyncio.create_task(other.ask(buffered=False))
        await followed(redis)
        one.model.may_end.set()
        assert [await leading, await following] == [("one two three", True), ("one two three", False)]
    await nothing_left(redis, one, other)
    assert there == [1]
    assert (other.model.begun, one.counts.seen) == (0, [])


async def test_a_renewal_does_not_restore_a_flight_that_may_have_ended_with_its_answer(
    fleet: Fleet, redis: Redis
) -> None:
    one = await fleet("one")
    one.model.may_end.set()

    async def generate(output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        answer = await storing(one)(output, claim)
        assert claim is not None
        claim.ended = None  # as if the reply had been lost
        await one.flights.renew_leases()
        assert not await redis.exists(HASH)
        return answer

    async with one.flights.join(KEY, generate, asked_ms=0, buffered=True) as flight:
        assert await read(flight) == ("one two three", True)
    await nothing_left(redis, one)
    assert one.counts.seen == []


@pytest.mark.parametrize("ended_by", ["storing", "publishing", "leaving"])
async def test_a_renewal_under_way_restores_no_flight_that_ends_meanwhile(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    one = await fleet("one")
    renew, renewing, goes_on = one.flights.store.renew_leases, asyncio.Event(), asyncio.Event()

    async def held(leads: Any) -> Any:
        if leads:
            renewing.set()
            await goes_on.wait()
        return await renew(leads)

    async def ask() -> None:
        generate = storing(one) if ended_by == "storing" else one.model
        async with one.flights.join(KEY, generate, asked_ms=0, buffered=True) as flight:
            await read(flight)

    monkeypatch.setattr(one.flights.store, "renew_leases", held)
    asking = asyncio.create_task(ask())
    await until(lambda: one.model.begun)
    renewal = asyncio.create_task(one.flights.renew_leases())
    await renewing.wait()
    asking.cancel() if ended_by == "leaving" else one.model.may_end.set()
    await asyncio.wait([asking])
    await nothing_left(redis, one)
    goes_on.set()
    await renewal
    await until(lambda: not one.flights._background_tasks)
    assert not await redis.exists(HASH)
    assert one.counts.seen == []


async def test_the_leaders_failure_is_everybodys(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    one.model.error = UpstreamError(UpstreamFault.SERVER_ERROR, "Ollama broke.")
    asking = [asyncio.create_task(one.ask())]
    await until(lambda: one.model.begun)
    asking.append(asyncio.create_task(other.ask()))
    await followed(redis)
    one.model.may_end.set()
    for error in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(error, UpstreamError)
        assert (error.fault, error.detail) == (UpstreamFault.SERVER_ERROR, "Ollama broke.")
    assert other.model.begun == 0


async def test_a_caller_who_leaves_takes_nobody_along(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await followed(redis)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    one.model.may_end.set()
    assert (await following)[0] == "one two three"
    assert (one.model.begun, one.model.cancelled, other.model.begun) == (1, 0, 0)


async def test_the_last_who_leaves_ends_the_generation(fleet: Fleet, redis: Redis) -> None:
    one = await fleet("one")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    await until(lambda: one.model.cancelled)
    await nothing_left(redis, one)


async def test_a_follower_who_leaves_is_forgotten(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await followed(redis)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

    async def is_alone() -> bool:
        return not any(name.startswith("follower:") for name in texts(await redis.hkeys(HASH)))

    await wait_until_async(is_alone)
    one.model.may_end.set()
    await leading


async def test_a_leader_who_leaves_in_order_is_replaced_at_once(fleet: Fleet, redis: Redis) -> None:
    one, other, third = await fleet("one"), await fleet("other"), await fleet("third")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = [asyncio.create_task(worker.ask()) for worker in (other, third)]
    await followed(redis, 2)
    left = asyncio.get_running_loop().time()
    await one.leave()
    await until(lambda: other.model.begun + third.model.begun)
    assert asyncio.get_running_loop().time() - left < LEASE_MS / 1000
    await followed(redis)
    other.model.may_end.set()
    third.model.may_end.set()
    assert {text for text, _ in await asyncio.gather(*following)} == {"one two three"}
    assert other.model.begun + third.model.begun == 1
    assert [*other.counts.seen, *third.counts.seen] == ["handed_over"]
    await asyncio.gather(leading, return_exceptions=True)


async def test_a_dead_leader_is_replaced_and_its_late_word_is_not_heard(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await followed(redis)
    fence = raw(await redis.hget(HASH, "fence"))
    one.gate.is_up = False  # a worker that is paused: it neither tends nor says anything
    await redis.delete(HASH)
    await until(lambda: other.model.begun)
    assert raw(await redis.hget(HASH, "fence")) > fence
    one.gate.is_up = True
    one.model.text = "one two something else"
    one.model.may_end.set()
    assert (await leading)[0] == "one two something else"
    assert not following.done()
    other.model.may_end.set()
    assert (await following)[0] == "one two three"
    await until(lambda: one.counts.seen == ["fenced"])
    assert other.counts.seen == ["handed_over"]


async def test_flushall_ends_no_lead(fleet: Fleet, redis: Redis) -> None:
    one = await fleet("one")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    fence = await redis.hget(HASH, "fence")
    await redis.flushall()

    async def is_back() -> bool:
        return bool(await redis.hget(HASH, "fence") == fence)

    await wait_until_async(is_back)
    one.model.may_end.set()
    await leading
    assert one.counts.seen == []


async def test_an_ended_flight_is_not_joined_while_its_end_is_being_published(fleet: Fleet) -> None:
    one, other = await fleet("one"), await fleet("other")
    may_publish = asyncio.Event()
    end = one.flights.store.end

    async def held_back(key: FlightKey, fence: str, body: str) -> bool:
        await may_publish.wait()
        return await end(key, fence, body)

    one.flights.store.end = held_back  # type: ignore[method-assign]
    asking = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    elsewhere = asyncio.create_task(other.ask())
    await until(lambda: follows(other))
    one.model.may_end.set()
    assert await asking == ("one two three", True)
    later = asyncio.create_task(one.ask())
    await asyncio.sleep(0)
    assert one.model.begun == 1
    may_publish.set()
    assert await later == ("one two three", True)
    assert one.model.begun == 2
    assert await elsewhere == ("one two three", False)
    assert (other.model.begun, one.counts.seen) == (0, [])


async def test_without_redis_each_worker_generates_once(fleet: Fleet) -> None:
    one, other = await fleet("one"), await fleet("other")
    one.gate.is_up = other.gate.is_up = False
    one.model.may_end.set()
    other.model.may_end.set()
    answers = await asyncio.gather(*(worker.ask() for worker in (one, other) for _ in range(5)))
    assert {text for text, _ in answers} == {"one two three"}
    assert (one.model.claims, other.model.claims) == ([None], [None])


async def test_when_redis_is_lost_meanwhile_the_follower_generates_alone(
    fleet: Fleet, redis: Redis, redis_server: EmbeddedRedis
) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await followed(redis)
    redis_server.kill()
    other.model.may_end.set()
    assert (await asyncio.wait_for(following, 10))[0] == "one two three"
    assert other.counts.seen == ["alone"]
    one.model.may_end.set()
    assert (await leading)[0] == "one two three"


async def test_a_leader_who_says_nothing_is_not_waited_for_for_ever(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other", patience=0.5)
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = [asyncio.create_task(other.ask()) for _ in range(3)]
    other.model.may_end.set()
    assert {text for text, _ in await asyncio.wait_for(asyncio.gather(*following), 10)} == {"one two three"}
    assert (other.model.begun, other.model.claims, other.counts.seen) == (1, [None], ["alone"])
    assert not leading.done()
    one.model.may_end.set()
    await leading


async def test_what_was_stored_since_one_looked_is_found(fleet: Fleet, redis: Redis) -> None:
    one = await fleet("one")
    await redis.hset("rag:cache:0123456789-scope:digest", mapping={"created_ms": 5000})
    assert await one.ask(asked_ms=5000) == ("stored", False)
    one.model.may_end.set()
    assert (await one.ask(asked_ms=5001))[0] == "one two three"
    assert one.model.begun == 1


async def test_work_of_one_alone(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    async with one.flights.exclusive(KEY) as claim:
        assert claim is not None
        assert text(await redis.hget(claim.key, "fence")) == claim.fence
        async with other.flights.exclusive(KEY) as none:
            assert none is None
        assert await redis.pttl(claim.key) > 0
    async with other.flights.exclusive(KEY) as claim:
        assert claim is not None
    assert [key async for key in redis.scan_iter("rag:flight:*")] == []


async def test_who_asks_after_a_deletion_shares_no_answer_of_before(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    before = asyncio.create_task(one.ask(asked_ms=5000))
    await until(lambda: one.model.begun)
    other.model.text = "new words now"
    async with other.flights.join(KEY, other.model, asked_ms=7000, not_before_ms=6000, buffered=True) as flight:
        await until(lambda: other.model.begun)
        with_it = asyncio.create_task(other.ask(asked_ms=7001))
        here = Model()
        here.text = "newest"
        here.may_end.set()
        async with one.flights.join(KEY, here, asked_ms=7500, not_before_ms=7200, buffered=True) as newest:
            assert (await read(newest))[0] == "newest"
        one.model.may_end.set()
        other.model.may_end.set()
        assert (await read(flight))[0] == "new words now"
    assert (await before)[0] == "one two three"
    assert (await with_it)[0] == "new words now"
    await nothing_left(redis, one, other)


@pytest.mark.parametrize("asked_ms", [5000, 0])
async def test_who_could_not_ask_the_cache_shares_no_answer_of_before_a_change(
    fleet: Fleet, redis: Redis, asked_ms: int
) -> None:
    """The look-up failed, and then Redis answers again: nobody knows when answers were last invalidated but Redis."""
    one, other, third = await fleet("one"), await fleet("other"), await fleet("third")
    before = await one.flights.store.join(KEY, asked_ms, 0)
    led_ms = asked_ms or int(text(await redis.hget(HASH, "began_ms")))
    await redis.hset("rag:invalidated", mapping={"corpus:a": led_ms - 1, "began": led_ms + 1})
    assert (await third.flights.store.join(KEY, 0, UNKNOWN)).fence == before.fence
    await redis.hset("rag:invalidated", "corpus:a", str(led_ms))
    joined = await other.flights.store.join(KEY, 0, UNKNOWN)
    assert joined.role is FlightRole.LEAD
    assert joined.fence != before.fence


async def test_whose_look_up_failed_does_not_share_what_the_same_worker_was_asked_before(fleet: Fleet) -> None:
    """A document may have changed since, and nobody on this worker knows."""
    worker, model = await fleet("one"), Model()
    before = asyncio.create_task(worker.ask(asked_ms=5000))
    await until(lambda: worker.model.begun)
    model.text = "new words now"
    async with worker.flights.join(KEY, model, asked_ms=0, not_before_ms=UNKNOWN, buffered=True) as flight:
        await until(lambda: model.begun)
        async with worker.flights.join(KEY, Model(), asked_ms=0, not_before_ms=UNKNOWN, buffered=True) as shares:
            worker.model.may_end.set()
            model.may_end.set()
            assert await read(flight) == ("new words now", True)
            assert await read(shares) == ("new words now", False)
    assert (await before)[0] == "one two three"


@pytest.mark.parametrize("buffered", [True, False])
async def test_whose_look_up_failed_asks_again_when_what_it_shares_cites_documents(
    fleet: Fleet, buffered: bool
) -> None:
    """The search for them may have ended before they changed."""
    worker, may_search = await fleet("one"), asyncio.Event()
    sources = (Source("handbook", "Handbook", 0, "Old.", 1.0),)

    async def search(output: AnswerOutput, claim: Claim | None) -> CompletedAnswer:
        await may_search.wait()
        await output.ground(sources)
        await output.write("one [1]")
        return CompletedAnswer("one [1]", "llama3.2", Usage(1, 3), sources=sources)

    join = partial(worker.flights.join, KEY, asked_ms=0, not_before_ms=UNKNOWN)
    async with join(search, buffered=True) as first, join(worker.model, buffered=buffered) as shares:
        may_search.set()
        assert await read(shares) == ("stored", False)
        async with join(worker.model, buffered=buffered) as again:
            worker.model.may_end.set()
            assert await read(again) == ("one two three", True)
        assert await read(first) == ("one [1]", True)


async def test_a_flight_that_is_left_by_followers_too_is_ended(fleet: Fleet) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await until(lambda: follows(other))
    leading.cancel()
    await asyncio.wait([leading])
    assert not one.model.cancelled, "the other worker's caller still waits"
    following.cancel()
    await asyncio.wait([following])
    await until(lambda: one.model.cancelled)
    assert not one.flights
    assert one.model.begun == 1
    assert not other.model.begun


async def test_a_flight_whose_callers_left_before_it_had_the_lead_generates_nothing(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await fleet("one")
    join, joined, goes_on = one.flights.store.join, asyncio.Event(), asyncio.Event()

    async def held(*of: Any) -> Any:
        reply = await join(*of)
        joined.set()
        await goes_on.wait()
        return reply

    monkeypatch.setattr(one.flights.store, "join", held)
    asking = asyncio.create_task(one.ask())
    await joined.wait()
    asking.cancel()
    await asyncio.wait([asking])
    goes_on.set()
    await until(lambda: not one.flights)
    assert not one.model.begun
    assert not await redis.exists(HASH)


async def test_a_renewal_does_not_take_an_abandoned_lead_again(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await fleet("one")
    abandon, abandoned, goes_on = one.flights.store.abandon, asyncio.Event(), asyncio.Event()

    async def held(*of: Any) -> Any:
        reply = await abandon(*of)
        abandoned.set()
        await goes_on.wait()
        return reply

    monkeypatch.setattr(one.flights.store, "abandon", held)
    asking = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    asking.cancel()
    await abandoned.wait()
    await one.flights.renew_leases()
    assert not await redis.exists(HASH)
    goes_on.set()
    await until(lambda: not one.flights)
    assert not await redis.exists(HASH)


async def test_a_place_that_was_taken_since_is_not_given_up_with_an_older_one(fleet: Fleet, redis: Redis) -> None:
    one, other = await fleet("one"), await fleet("other")
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    store = other.flights.store
    older, newer = await store.join(KEY, 0, 0), await store.join(KEY, 0, 0)
    await store.leave(KEY, older.place)
    assert await redis.hget(HASH, "follower:other") == newer.place.encode()
    await store.leave(KEY, newer.place)
    assert not await redis.hexists(HASH, "follower:other")
    one.model.may_end.set()
    assert await leading == ("one two three", True)


async def test_a_follower_that_was_too_busy_to_read_reads_before_it_gives_the_leader_up(fleet: Fleet) -> None:
    one, other = await fleet("one"), await fleet("other", patience=0.3)
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.model.begun)
    following = asyncio.create_task(other.ask())
    await until(lambda: follows(other))
    one.model.may_end.set()
    assert await leading == ("one two three", True)
    time.sleep(0.5)  # both workers share a loop: the answer is in Redis, and nobody can read it
    assert await following == ("one two three", False)
    assert not other.model.begun


async def test_an_ended_flight_leaves_nothing_to_the_garbage_collector(fleet: Fleet) -> None:
    def flights() -> int:
        return sum(isinstance(one, Flight) for one in gc.get_objects())

    worker = await fleet("one")
    gc.collect()
    before = flights()
    gc.disable()
    try:
        worker.model.may_end.set()
        assert await worker.ask() == ("one two three", True)
        await until(lambda: flights() == before)
    finally:
        gc.enable()
