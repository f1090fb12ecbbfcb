"""Disconnects one replica from Redis, from Ollama, or from both. Packets are dropped, so connections hang.

Each request must end within its deadlines, the other replicas must not be affected, and after the network heals the
replica must rejoin without help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from tests.chaos.fleet import SETTINGS, Fleet, Replica
from tests.chaos.traffic import CACHED, LONG, cached, fresh, no_failures, summary
from tests.support.load import Load, constant_load
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos

Note = Callable[[str], None]


class Waits:
    """Durations of requests."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def timed(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        began = time.monotonic()
        response = ask()
        self.seconds.append(time.monotonic() - began)
        return response

    def __str__(self) -> str:
        first, slowest = self.seconds[0], max(self.seconds)
        return f"{len(self.seconds)} requests, the first took {first:.2f} s, the slowest {slowest:.2f} s"


def time_until(condition: Callable[[], object]) -> float:
    began = time.monotonic()
    wait_until(condition, timeout=90)
    return time.monotonic() - began


@contextmanager
def traffic_on_the_others(fleet: Fleet, cut: Replica) -> Iterator[dict[str, Load]]:
    """Sends traffic to every other replica. None of it may fail."""
    with (
        constant_load(fresh(other(fleet, cut, 0).url), 1) as generated,
        constant_load(cached(other(fleet, cut, 1).url), 1) as hits,
        constant_load(fresh(other(fleet, cut, 2).url), 1) as more,
    ):
        loads = {"generated": generated, "cached": hits, "generated too": more}
        yield loads
    no_failures(loads)


def other(fleet: Fleet, cut: Replica, number: int) -> Replica:
    return [replica for replica in fleet.replicas if replica is not cut][number]


def healthy(replica: Replica) -> bool:
    return bool(replica.health()["status"] == "healthy")


def test_a_replica_without_redis_answers_from_ollama_and_rejoins(fleet: Fleet, note: Note) -> None:
    cut, waits = fleet.replicas[0], Waits()
    assert cut.ask(CACHED).json()["cache"]["status"] == "miss"
    with traffic_on_the_others(fleet, cut) as loads, constant_load(cached(cut.url), 4) as own:
        cut.host.cut_off_from(fleet.redis)
        for number in range(20):
            answer = waits.timed(partial(cut.ask, CACHED if number % 2 else f"Question {number}?"))
            assert answer.status_code == 200, answer.text
            # The load asks CACHED at the same time. Requests that join its generation in the same worker share the
            # answer.
            expected = {"bypass", "coalesced"} if number % 2 else {"bypass"}
            assert answer.json()["cache"]["status"] in expected
        assert (cut.health()["status"], cut.health()["database"], cut.breaker()["store"]) == (
            "degraded",
            False,
            "local",
        )
        assert cut.name in fleet.balancer.up()
        cut.host.heal()
        hits = time_until(lambda: all(cut.cache_status(CACHED) == "hit" for _ in range(6)))
        shared = time_until(lambda: all(cut.breaker()["store"] == "shared" for _ in range(6)))
        wait_until(lambda: healthy(cut))
    assert own.failures == []
    note(f"cut off from Redis: {waits}; hits {hits:.2f} s after the healing, the breaker shared {shared:.2f} s later")
    note(f"  four clients of it all the while: {own}")
    note(f"  the others: {summary(loads)}")


def test_a_rejoining_replica_sees_a_breaker_that_opened_meanwhile(fleet: Fleet, note: Note) -> None:
    cut = fleet.replicas[0]
    cut.host.cut_off_from(fleet.redis)
    wait_until(lambda: cut.breaker()["store"] == "local")
    other(fleet, cut, 0).admin("force-open")
    assert cut.ask("Does it know?").status_code == 200
    cut.host.heal()
    opened = time_until(lambda: all(cut.breaker()["state"] == "OPEN" for _ in range(6)))
    assert cut.ask("Does it know now?").status_code == 503
    other(fleet, cut, 0).admin("reset")
    closed = time_until(lambda: all(cut.ask("And that it is over?").is_success for _ in range(6)))
    note(f"a breaker opened meanwhile: open {opened:.2f} s after the healing, closed {closed:.2f} s after the others'")


def test_a_replica_without_ollama_answers_from_the_cache_and_rejoins(fleet: Fleet, note: Note) -> None:
    cut, waits = fleet.replicas[1], Waits()
    assert cut.ask(CACHED).json()["cache"]["status"] == "miss"
    with traffic_on_the_others(fleet, cut) as loads:
        cut.host.cut_off_from(fleet.model)
        for _ in range(3):
            assert cut.ask(CACHED).json()["cache"]["status"] == "hit"
            refused = waits.timed(lambda: cut.ask("Something new?", fresh=True))
            assert refused.status_code in {502, 504}, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["fault"]
        assert cut.name in fleet.balancer.up()
        assert {replica.breaker()["state"] for replica in fleet.replicas} == {"CLOSED"}
        cut.host.heal()
        fresh_again = time_until(lambda: cut.ask("Something new?", fresh=True).is_success)
        wait_until(lambda: healthy(cut))
    note(f"cut off from Ollama: {waits}; new answers {fresh_again:.2f} s after the healing")
    note(f"  the others: {summary(loads)}")
    assert max(waits.seconds) < float(SETTINGS["OLLAMA_TOTAL_TIMEOUT"]) + 2


def test_failures_of_one_replica_open_the_breaker_for_all_and_the_others_close_it(fleet: Fleet) -> None:
    cut = fleet.replicas[1]
    cut.host.cut_off_from(fleet.model)
    with constant_load(fresh(cut.url), 4):
        wait_until(lambda: {replica.breaker()["state"] for replica in fleet.replicas} == {"OPEN"}, timeout=60)
    probe = other(fleet, cut, 0)
    wait_until(lambda: probe.ask("Is it well?", fresh=True).is_success and probe.breaker()["state"] == "CLOSED", 60)
    wait_until(lambda: {replica.breaker()["state"] for replica in fleet.replicas} == {"CLOSED"})


def test_losing_ollama_ends_a_stream_with_an_error(fleet: Fleet, note: Note) -> None:
    cut = fleet.replicas[3]
    fleet.ollama.behaviour(pace=0.2)
    body = {"question": LONG, "stream": True}
    with httpx.stream("POST", f"{cut.url}/query", json=body, timeout=60, trust_env=False) as response:
        lines = response.iter_lines()
        assert "event: token" in lines
        cut.host.cut_off_from(fleet.model)
        began = time.monotonic()
        rest = list(lines)
    assert "event: error" in rest
    assert "event: done" not in rest
    note(f"a stream cut off from Ollama: ended with an error after {time.monotonic() - began:.2f} s")


def test_a_replica_without_both_fails_fast_and_rejoins(fleet: Fleet, note: Note) -> None:
    cut, waits = fleet.replicas[2], Waits()
    assert cut.ask(CACHED).json()["cache"]["status"] == "miss"
    seen: set[str] = set()

    def hit() -> bool:
        seen.add(status := cut.cache_status(CACHED))
        return status == "hit"

    with traffic_on_the_others(fleet, cut) as loads:
        cut.host.cut_off_from(fleet.redis, fleet.model)
        for _ in range(4):
            refused = waits.timed(lambda: cut.ask(CACHED))
            assert refused.status_code in {502, 503, 504}, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
        assert cut.gunicorn.get("/health").status_code == 503
        assert cut.gunicorn.get("/health/live").is_success
        renewed = time_until(cut.reload())  # workers start without Redis and Ollama
        cut.host.heal()
        hits = time_until(lambda: all(hit() for _ in range(6)))
        fresh_again = time_until(lambda: all(cut.ask("New?", fresh=True).is_success for _ in range(6)))
        wait_until(lambda: healthy(cut) and cut.breaker()["store"] == "shared")
    assert "miss" not in seen  # it uses the fleet's index from its first lookup on
    note(f"cut off from both: {waits}; hits {hits:.2f} s, new answers {hits + fresh_again:.2f} s after the healing")
    note(f"  its workers were replaced while it was cut off, in {renewed:.2f} s")
    note(f"  the others: {summary(loads)}")
    assert max(waits.seconds) < float(SETTINGS["OLLAMA_TOTAL_TIMEOUT"]) + 2
