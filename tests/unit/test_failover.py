"""The loop over backends: what a failure allows, how time is shared, and the final result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from api.backends.choice import (
    CHARGED,
    EMBEDDING_CHARGED,
    FREE,
    Backend,
    Backends,
    FailoverPolicy,
    InUse,
    Preference,
    Terms,
)
from api.backends.failover import Failover, admitted, speaks_against_ollama
from api.errors import BackendsDrained, BreakerOpen, BulkheadFull, RagherdError, UpstreamError, UpstreamFault
from api.ports.telemetry import Telemetry
from api.values import BackendHealth, QueuePlace

MODEL = "m"


def fault(kind: UpstreamFault) -> UpstreamError:
    return UpstreamError(kind, kind.value)


def waited_in_vain(name: str = "one") -> BulkheadFull:
    return BulkheadFull(name, "deadline", 3.0)


class Output:
    """Replaces the writer of an answer."""

    def __init__(self) -> None:
        self.written: list[str] = []

    @property
    def begun(self) -> bool:
        return bool(self.written) and self.written[-1] != "RESTART"

    async def write(self, text: str) -> None:
        self.written.append(text)

    def restart(self) -> None:
        self.written.append("RESTART")


@dataclass
class Fake(Telemetry):
    """A clock, retries, events, and for each backend the outcomes of its attempts: an error or an answer."""

    outcomes: dict[str, list[RagherdError | str]]
    now: float = 100.0
    retries_left: int = 10
    waits: dict[str, float] = field(default_factory=dict)
    rejecting: set[str] = field(default_factory=set)
    tried: list[tuple[str, str]] = field(default_factory=list)
    remaining: list[float] = field(default_factory=list)
    failed_over_from: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    had: set[tuple[str, str]] = field(default_factory=set)
    probed: dict[str, BackendHealth] = field(default_factory=dict)
    tiers: dict[str, int] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    asked: list[tuple[str, bool]] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    drained_meanwhile: set[str] = field(default_factory=set)

    def clock(self) -> float:
        return self.now

    def spend(self) -> bool:
        self.retries_left -= 1
        return self.retries_left >= 0

    def failed_over(self, backend: str, error: UpstreamError) -> None:
        self.failed_over_from.append(backend)

    def failover(self, policy: FailoverPolicy) -> Failover[Any]:
        members = [self.member(name) for name in self.outcomes]
        backends = Backends(members, self.probed.get, lambda backend, model: (backend, model) in self.had)
        return Failover(backends, policy, self, self, self.clock)

    def member(self, name: str) -> Backend[Any]:
        drain = InUse(drained=name in self.drained)
        bulkhead, tier = Bulkhead(self, name, drain), self.tiers.get(name, 1)
        return Backend(name, name, bulkhead, Breaker(self, name), tier=tier, drain=drain)

    async def attempt(self, output: Output, backend: Backend[Any], terms: Terms) -> None:
        async with admitted(backend, terms, "acme"):
            self.tried.append((backend.name, terms.retry))
            self.remaining.append(terms.remaining)
            outcomes = self.outcomes[backend.name]
            outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
            if isinstance(outcome, RagherdError):
                raise outcome
            for word in outcome.split():
                if word == "CUT":
                    raise fault(UpstreamFault.CONNECTION_LOST)
                await output.write(word)

    async def call(self, policy: FailoverPolicy | None = None, **more: Any) -> list[str]:
        output = Output()
        failover = self.failover(policy or FailoverPolicy(10.0))
        await failover.call(MODEL, partial(self.attempt, output), output=output, **more)
        return output.written


@dataclass
class Bulkhead:
    fake: Fake
    name: str
    drain: InUse

    def ask_early(self, *_: object) -> None: ...

    @asynccontextmanager
    async def permit(
        self, tenant: str, *, place: QueuePlace | None = None, within: float | None = None, queues: bool = True
    ) -> AsyncIterator[None]:
        self.fake.asked.append((self.name, queues))
        if self.name in self.fake.full and not queues:
            raise BulkheadFull(self.name, "no_permit", 1.0)
        self.drain.drained |= self.name in self.fake.drained_meanwhile
        wait = self.fake.waits.get(self.name, 0.0)
        assert within is not None
        self.fake.now += min(wait, within)
        if wait > within:
            raise waited_in_vain(self.name)
        yield


@dataclass
class Breaker:
    fake: Fake
    name: str

    @property
    def rejects(self) -> bool:
        return self.name in self.fake.rejecting

    def check(self) -> None:
        if self.rejects:
            raise BreakerOpen(self.name, 7.0 if self.name == "one" else 5.0)

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[Any]:
        yield self

    async def failed(self, seconds: float) -> None:
        self.fake.reported.append(self.name)


@pytest.mark.parametrize("kind", sorted(FREE))
async def test_a_call_that_never_started_tries_every_other_backend_without_retry_cost(kind: UpstreamFault) -> None:
    fake = Fake({"one": [fault(kind)], "two": [fault(kind)], "three": ["yes"]}, retries_left=0)
    assert await fake.call() == ["yes"]
    assert fake.failed_over_from == ["one", "two"]


@pytest.mark.parametrize("kind", sorted(CHARGED))
async def test_a_call_that_may_have_started_tries_one_other_backend_at_retry_cost(kind: UpstreamFault) -> None:
    fake = Fake({"one": [fault(kind)], "two": [fault(kind)], "three": ["yes"]})
    with pytest.raises(UpstreamError) as failed:
        await fake.call()
    assert failed.value.fault is kind
    assert (fake.tried, fake.retries_left) == ([("one", "elsewhere"), ("two", "spent")], 9)


async def test_without_a_retry_budget_there_is_no_failover() -> None:
    fake = Fake({"one": [fault(UpstreamFault.SERVER_ERROR)], "two": ["yes"]}, retries_left=0)
    with pytest.raises(UpstreamError):
        await fake.call()
    assert len(fake.tried) == 1


@pytest.mark.parametrize("kind", sorted(set(UpstreamFault) - FREE - CHARGED))
async def test_other_failures_are_final_except_for_embeddings(kind: UpstreamFault) -> None:
    for charged in (CHARGED, EMBEDDING_CHARGED):
        fake = Fake({"one": [fault(kind)], "two": ["yes"]})
        calling = fake.call(FailoverPolicy(10.0, charged=charged))
        if kind in charged:
            assert await calling == ["yes"]
        else:
            with pytest.raises(UpstreamError):
                await calling


async def test_without_another_backend_only_the_adapter_retries() -> None:
    fake = Fake({"one": [fault(UpstreamFault.SERVER_ERROR)]})
    with pytest.raises(UpstreamError):
        await fake.call()
    assert fake.tried == [("one", "here")]
    fake = Fake({"one": [fault(UpstreamFault.SERVER_ERROR)], "two": ["yes"]}, rejecting={"two"})
    with pytest.raises(UpstreamError):
        await fake.call()
    assert fake.tried == [("one", "here")], "another whose breaker is open is nowhere to go"


async def test_after_its_first_event_an_answer_restarts_only_without_stream_readers() -> None:
    fake = Fake({"one": ["a CUT"], "two": ["b c"]})
    with pytest.raises(UpstreamError):
        await fake.call()
    fake = Fake({"one": ["a CUT"], "two": ["b c"]})
    assert await fake.call(restarts=True) == ["a", "RESTART", "b", "c"]


async def test_queue_time_and_earlier_attempts_count_towards_the_deadline() -> None:
    fake = Fake({"one": [fault(UpstreamFault.CONNECT_FAILED)], "two": ["yes"]}, waits={"one": 4.0, "two": 3.0})
    assert await fake.call(FailoverPolicy(10.0)) == ["yes"]
    assert fake.remaining == [6.0, 3.0]
    fake = Fake({"one": ["yes"]}, waits={"one": 4.0})
    with pytest.raises(BulkheadFull):
        await fake.call(FailoverPolicy(10.0), timeout=3.0)
    assert (fake.tried, fake.now) == ([], 103.0)


async def test_a_caller_waits_in_a_second_queue_only_if_the_policy_allows_it() -> None:
    for waits_again in (False, True):
        fake = Fake({"one": [waited_in_vain()], "two": ["yes"]})
        calling = fake.call(FailoverPolicy(10.0, waits_again=waits_again))
        if waits_again:
            assert await calling == ["yes"]
        else:
            with pytest.raises(BulkheadFull):
                await calling
            assert len(fake.tried) == 1


async def test_the_most_informative_error_is_raised() -> None:
    missing, lost = fault(UpstreamFault.MODEL_NOT_FOUND), fault(UpstreamFault.CONNECT_FAILED)
    cases: list[tuple[dict[str, list[Any]], set[str], Callable[[RagherdError], bool]]] = [
        ({"one": [fault(UpstreamFault.SERVER_ERROR)], "two": [missing]}, set(), lambda error: error is not missing),
        ({"one": [missing], "two": [missing]}, set(), lambda error: error is missing),
        ({"one": ["-"], "two": ["-"]}, {"one", "two"}, lambda error: getattr(error, "retry_after", 0) == 5.0),
        ({"one": ["-"], "two": [lost]}, {"one"}, lambda error: error is lost),
        (
            {"one": [BulkheadFull("one", "queue_full", 2.0)], "two": [missing]},
            set(),
            lambda error: isinstance(error, BulkheadFull),
        ),
    ]
    for outcomes, rejecting, is_expected in cases:
        with pytest.raises(RagherdError) as told:
            await Fake(outcomes, rejecting=rejecting).call()
        assert is_expected(told.value), told.value


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
@pytest.mark.parametrize("way", ["refuses", "rejects"])
async def test_a_model_that_no_reachable_backend_has_is_404_and_the_others_are_named(
    order: tuple[str, str], way: str
) -> None:
    lost = fault(UpstreamFault.CONNECT_FAILED)
    outcomes: dict[str, list[Any]] = {"one": [fault(UpstreamFault.MODEL_NOT_FOUND)], "two": [lost]}
    rejecting = {"two"} if way == "rejects" else set()
    fake = Fake({name: outcomes[name] for name in order}, rejecting=rejecting)
    with pytest.raises(UpstreamError) as told:
        await fake.call()
    assert (told.value.status, told.value.members["unreachable"]) == (404, ["two"])
    assert "two" in told.value.detail
    had = Fake({name: outcomes[name] for name in order}, rejecting=rejecting, had={("two", "m:latest")})
    with pytest.raises(RagherdError) as failed:
        await had.call()
    assert (failed.value.status, "unreachable" in failed.value.members) == (502 if way == "refuses" else 503, False)


async def test_if_the_only_backend_with_the_model_is_down_the_others_are_asked_too() -> None:
    lacking = BackendHealth(True, frozenset(), frozenset())
    outcomes: dict[str, list[Any]] = {"one": [fault(UpstreamFault.CONNECT_FAILED)], "two": ["pulled since"]}
    assert await Fake(outcomes, probed={"two": lacking}).call() == ["pulled", "since"]
    outcomes["two"] = [fault(UpstreamFault.MODEL_NOT_FOUND)]
    fake = Fake(outcomes, probed={"two": lacking})
    with pytest.raises(UpstreamError) as told:
        await fake.call()
    assert (told.value.status, told.value.members["unreachable"]) == (404, ["one"])
    assert [name for name, _ in fake.tried] == ["one", "two"]


async def test_the_next_tier_is_used_only_while_the_first_is_down_or_full() -> None:
    tiers = {"near": 1, "far": 2}
    assert await Fake({"far": ["far"], "near": ["near"]}, tiers=tiers).call() == ["near"]
    assert await Fake({"far": ["far"], "near": ["near"]}, tiers=tiers, full={"near"}).call() == ["far"]
    down: list[RagherdError | str] = [fault(UpstreamFault.CONNECT_FAILED)]
    assert await Fake({"far": ["far"], "near": down}, tiers=tiers).call() == ["far"]


async def test_if_every_tier_is_full_the_call_waits_at_the_first() -> None:
    fake = Fake({"far": ["far"], "near": ["near"]}, tiers={"near": 1, "far": 2}, full={"near", "far"})
    assert await fake.call() == ["near"]
    assert fake.asked == [("near", False), ("far", False), ("near", True)]
    one_tier = Fake({"far": ["far"], "near": ["near"]}, full={"near", "far"})
    await one_tier.call()
    assert [queues for _, queues in one_tier.asked] == [True]


async def test_a_preferred_backend_that_has_filled_up_gives_way_to_one_with_a_free_permit() -> None:
    knows = {"one": Preference(worth=2.0, limit=4), "two": Preference(limit=4)}
    fake = Fake({"one": ["one"], "two": ["two"]}, full={"one"})
    assert await fake.call(preferences=knows) == ["two"]
    both_full = Fake({"one": ["one"], "two": ["two"]}, full={"one", "two"})
    assert await both_full.call(preferences=knows) == ["one"]
    assert both_full.asked == [("one", False), ("two", False), ("one", True)]


async def test_a_drained_backend_gets_no_call_not_even_one_that_waited_for_it() -> None:
    assert await Fake({"one": ["one"], "two": ["two"]}, drained={"one"}).call() == ["two"]
    fake = Fake({"one": ["one"], "two": ["two"]}, drained_meanwhile={"one"})
    assert await fake.call() == ["two"]
    assert [name for name, _ in fake.tried] == ["two"]
    for drained in ({"drained": {"one"}}, {"drained_meanwhile": {"one"}}):
        with pytest.raises(BackendsDrained) as refused:
            await Fake({"one": ["one"]}, **drained).call()  # type: ignore[arg-type]
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "30")


async def test_the_breaker_counts_only_failures_of_ollama() -> None:
    fake = Fake({"one": [fault(UpstreamFault.SERVER_ERROR)]})
    with pytest.raises(UpstreamError):
        await fake.call()
    assert fake.reported == ["one"]
    fake = Fake({"one": [fault(UpstreamFault.MODEL_NOT_FOUND)]})
    with pytest.raises(UpstreamError):
        await fake.call()
    assert fake.reported == []


async def test_a_call_with_little_time_left_does_not_count_against_ollama() -> None:
    late = fault(UpstreamFault.TOTAL_TIMEOUT)
    assert speaks_against_ollama(late, allowed=6.0, total=10.0)
    assert not speaks_against_ollama(late, allowed=4.0, total=10.0)
    assert speaks_against_ollama(fault(UpstreamFault.SERVER_ERROR), allowed=4.0, total=10.0)
