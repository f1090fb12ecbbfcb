"""The questions, times and statistics of `ragherd load-test`, on a clock that does not wait."""

from __future__ import annotations

import asyncio
import json
import random
import re
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import Any

import httpx
import pytest

from ragherd.load_plan import (
    FORMS,
    MOST_ROWS,
    MOST_TOPICS,
    Histogram,
    Plan,
    Reply,
    Tally,
    drawn,
    generated_topics,
    topics_of,
)
from ragherd.load_report import notes, page_of, write_report
from ragherd.load_test import LoadTest, reply_of
from ragherd.quality_samples import Samples

HIT = Reply("hit", "exact", http_status=200)
MISS = Reply("miss", http_status=200)


class _Selector(selectors.SelectSelector):
    """Moves the clock instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits for something else")
        self.now += max(timeout, 0.0)
        return super().select(0)


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes at once."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


Service = Callable[[float], Coroutine[Any, Any, Reply]]


def measured(plan: Plan, service: Service) -> LoadTest:
    """Runs a load test against a service that gets the time of each request."""

    async def ask(_: str) -> Reply:
        return await service(asyncio.get_running_loop().time())

    test = LoadTest(plan, repeat("Who?"), ask)
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(test.run())
    return test


def stalls(begin: float, end: float, usual: float = 0.001) -> Service:
    async def service(now: float) -> Reply:
        await asyncio.sleep(end - now if begin <= now < end else usual)
        return HIT

    return service


# -- Coordinated omission ----------------------------------------------------------------------------------------------


def test_a_stalled_service_shows_in_the_percentiles_of_an_open_loop() -> None:
    """A stall of 2 of 10 seconds delays a fifth of the requests, by one second on average."""
    plan = Plan(requests=None, seconds=10, concurrency=1, rate=100)
    test = measured(plan, stalls(4, 6))
    latency, document = test.tally.latency, test.tally.document(test.seconds)
    assert document["requests"] == sum(1 for _ in plan.arrivals())
    assert 1.8 * 1000 < document["latency_ms"]["p99"] <= document["latency_ms"]["max"] <= 2001
    assert 1.2 * 1000 < document["latency_ms"]["p95"] < 1.8 * 1000
    assert document["latency_ms"]["p50"] < 5
    assert 150 < latency.total / latency.count < 260
    assert document["generator_lag_ms"]["max"] == 0
    slow = [row["second"] for row in document["series"] if row["p50"] > 100]
    assert slow == [4, 5]


@pytest.mark.slow
def test_users_who_wait_for_a_stalled_service_do_not_count_what_they_did_not_ask() -> None:
    """A closed loop measures what a user sees, so the same stall is a single slow request."""
    test = measured(Plan(requests=None, seconds=10, concurrency=1), stalls(4, 6))
    figures = test.tally.latency.figures()
    assert figures["p99"] == pytest.approx(1, rel=0.01)
    assert figures["max"] == pytest.approx(2000, rel=0.01)


def test_every_planned_request_of_a_dead_service_times_out() -> None:
    plan = Plan(requests=None, seconds=10, concurrency=5, rate=20, timeout=3)
    test = measured(plan, stalls(0, 1000))
    tally = test.tally
    assert tally.requests == tally.failed == tally.errors["timeout"] == sum(1 for _ in plan.arrivals())
    assert tally.latency.least >= 2999
    assert test.seconds <= 13.01
    assert tally.error_rate == 1


def test_errors_that_come_at_once_do_not_improve_the_latency() -> None:
    async def service(now: float) -> Reply:
        await asyncio.sleep(0.001 if now < 5 else 1)
        return Reply(error="HTTP 503", reason="full", http_status=503) if now < 5 else HIT

    test = measured(Plan(requests=100, seconds=None, concurrency=1, rate=10), service)
    assert test.tally.failed > 30
    assert test.tally.latency.least > 900
    assert test.tally.errors == {"HTTP 503": test.tally.failed}
    assert test.tally.statuses == {"hit": 100 - test.tally.failed}


# -- Times -------------------------------------------------------------------------------------------------------------


def test_arrivals_are_random_repeatable_and_keep_to_the_rate() -> None:
    plan = Plan(requests=None, seconds=200, concurrency=1, rate=50)
    starts = list(plan.arrivals())
    assert starts == list(plan.arrivals())
    assert starts != list(Plan(requests=None, seconds=200, concurrency=1, rate=50, seed=2).arrivals())
    assert len(starts) == pytest.approx(10_000, rel=0.04)
    gaps = [after - before for before, after in pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)  # as of an exponential distribution
    assert sum(1 for _ in Plan(requests=7, seconds=None, concurrency=1, rate=50).arrivals()) == 7


def test_a_ramp_and_spikes_change_the_rate() -> None:
    plan = Plan(requests=None, seconds=100, concurrency=1, rate=100, ramp=20, spike=4, spike_every=20, spike_seconds=5)
    counts = Counter(int(at // 5) for at in plan.arrivals())
    assert [round(counts[part] / 500, 1) for part in range(4)] == pytest.approx([0.1, 0.4, 0.6, 0.9], abs=0.1)
    for part in range(4, 20):
        assert counts[part] / 500 == pytest.approx(4 if part % 4 == 3 else 1, rel=0.2), part


def test_users_come_with_the_ramp_and_more_of_them_in_spikes() -> None:
    plan = Plan(requests=None, seconds=90, concurrency=4, ramp=10, spike=2, spike_every=20, spike_seconds=5, think=1)
    assert plan.workers == 8
    assert [plan.user_starts(user, 0) for user in range(4)] == [0, 2.5, 5, 7.5]
    open_now = most = 0
    asked: Counter[int] = Counter()

    async def service(now: float) -> Reply:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        asked[int(now // 5)] += 1
        await asyncio.sleep(0.1)
        open_now -= 1
        return MISS

    test = measured(plan, service)
    assert asked[0] < asked[2]
    calm, spiky = asked[2] + asked[3] + asked[4], 3 * asked[5]  # 10 to 25 s, and 25 to 30 s
    assert spiky > 1.5 * calm
    assert test.seconds <= 90.2
    assert most <= 8


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_as_many_requests_as_wanted_are_sent_and_nobody_waits_on(rate: float | None) -> None:
    """Users who think or wait for a spike stop with the last request."""
    plan = Plan(requests=50, seconds=None, concurrency=7, rate=rate, spike=3, spike_every=1e6, think=0.0)
    test = measured(plan, stalls(-1, -1, usual=0.01))
    assert test.tally.requests == 50
    assert test.seconds < 1


@pytest.mark.slow
def test_users_think_for_the_wanted_time_on_average() -> None:
    plan = Plan(requests=None, seconds=1000, concurrency=2, think=1.0)
    test = measured(plan, stalls(-1, -1, usual=0.0))
    assert test.tally.requests == pytest.approx(2000, rel=0.1)


def test_a_refused_key_ends_the_run() -> None:
    async def service(now: float) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(error="HTTP 401", reason="Unknown key.", http_status=401)

    test = measured(Plan(requests=1000, seconds=None, concurrency=3), service)
    assert test.refusal == "HTTP 401: Unknown key."
    assert test.tally.requests <= 3


# -- Questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_popular_questions_follow_zipf() -> None:
    topics = [[f"q{rank}"] for rank in range(1, 11)]
    asked = Counter(islice(drawn(topics, 1.0, 0.3, 1), 30_000))
    assert asked["q1"] / asked["q2"] == pytest.approx(2, rel=0.1)
    assert asked["q1"] / asked["q10"] == pytest.approx(10, rel=0.15)
    even = Counter(islice(drawn(topics, 0.0, 0.3, 1), 30_000))
    assert min(even.values()) / max(even.values()) > 0.85
    assert list(islice(drawn(topics, 1.0, 0.3, 1), 50)) == list(islice(drawn(topics, 1.0, 0.3, 1), 50))
    assert list(islice(drawn(topics, 1.0, 0.3, 1), 50)) != list(islice(drawn(topics, 1.0, 0.3, 2), 50))


def test_the_wanted_share_are_paraphrases() -> None:
    topics = generated_topics(40, 1)
    usual = {topic[0] for topic in topics}
    asked = list(islice(drawn(topics, 1.0, 0.25, 1), 10_000))
    assert sum(one not in usual for one in asked) / 10_000 == pytest.approx(0.25, abs=0.02)
    assert all(one in usual for one in islice(drawn(topics, 1.0, 0.0, 1), 100))
    assert all(len(set(forms)) == len(forms) == 3 for forms in FORMS)


def test_generated_questions_are_distinct() -> None:
    every = [wording for topic in generated_topics(MOST_TOPICS, 3) for wording in topic]
    assert len(set(every)) == len(every) == 3 * MOST_TOPICS


def test_questions_of_a_file_with_the_same_intent_are_paraphrases() -> None:
    samples = Samples("a.csv", "intents", ["a", "b", "c", "a"], intents=["x", "y", "x", "x"])
    assert topics_of(samples) == [["a", "c"], ["b"]]
    assert topics_of(Samples("a.csv", "log", ["a", "b", "a"])) == [["a"], ["b"]]


# -- Statistics --------------------------------------------------------------------------------------------------------


def test_percentiles_are_within_half_a_percent_and_extremes_are_exact() -> None:
    chance = random.Random(5)
    times = [chance.lognormvariate(4, 2) for _ in range(20_000)]
    whole, halves = Histogram(), (Histogram(), Histogram())
    for number, one in enumerate(times):
        whole.add(one)
        halves[number % 2].add(one)
    times.sort()
    for percent in (1, 50, 95, 99, 99.9):
        assert whole.percentile(percent) == pytest.approx(times[int(len(times) * percent / 100) - 1], rel=0.0051)
    halves[0].merge(halves[1])
    assert halves[0].figures() == whole.figures()
    assert whole.figures()["min"] == round(times[0], 3)
    assert whole.figures()["max"] == round(times[-1], 3)
    assert whole.figures()["avg"] == pytest.approx(sum(times) / len(times), abs=0.001)


def test_no_request_has_no_figures() -> None:
    assert set(Histogram().figures().values()) == {None}
    one = Histogram()
    one.add(0.0)
    assert set(one.figures().values()) == {0.0}


@pytest.mark.slow
def test_memory_does_not_grow_with_requests() -> None:
    tally, chance = Tally(), random.Random(1)
    for number in range(50_000):
        tally.add(number, number + chance.lognormvariate(0, 3), HIT)
    document = tally.document(50_000)
    assert len(document["series"]) <= MOST_ROWS
    assert sum(row["requests"] for row in document["series"]) == tally.requests == 50_000
    assert document["series"][1]["second"] == 512
    assert len(json.dumps(document)) < 30_000
    assert len(tally.latency._buckets) < 3000


def test_the_hit_rate_is_that_of_the_service() -> None:
    tally = Tally()
    for reply in (HIT, HIT, Reply("hit", "semantic", http_status=200), MISS, Reply("coalesced"), Reply("bypass")):
        tally.add(0, 0.1, reply)
    document = tally.document(2.0)
    assert document["hit_rate"] == 0.75
    assert document["by_status"] == {"hit": 3, "miss": 1, "coalesced": 1, "bypass": 1}
    assert document["requests_by_status"] == {"bypass": 1, "coalesced": 1, "hit_exact": 2, "hit_semantic": 1, "miss": 1}
    assert document["requests_per_second"] == 3.0


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (200, b'{"cache": {"status": "hit", "kind": "exact"}}', HIT),
        (200, b'{"cache": {"status": "miss", "kind": null}}', MISS),
        (200, b"hello", Reply(error="not an answer of Ragherd", reason="hello", http_status=200)),
        (200, b"[]", Reply(error="not an answer of Ragherd", reason="[]", http_status=200)),
        (503, b'{"detail": "full\x1b[2J"}', Reply(error="HTTP 503", reason='{"detail": "full[2J"}', http_status=503)),
        (504, b'{"detail": "too\\nlate"}', Reply(error="HTTP 504", reason="too\nlate", http_status=504)),
    ],
)
def test_replies_are_told_apart(code: int, body: bytes, expected: Reply) -> None:
    assert reply_of(httpx.Response(code, content=body)) == expected


# -- Report ------------------------------------------------------------------------------------------------------------


def document(**changes: Any) -> dict[str, Any]:
    tally = Tally()
    tally.add(0.2, 0.3, HIT)
    tally.add(1.2, 1.9, MISS)
    tally.add(2.2, 2.3, Reply(error="HTTP 503", reason="<script>alert(1)</script>", http_status=503))
    plan = {"concurrency": 2, "rate": None, "think": 0.0, "ramp": 1.0, "spike": 1.0, "spike_seconds": 5.0}
    more = {"spike_every": 30.0, "questions": "<b>.csv", "seed": 1, "zipf": None}
    criteria = [{"name": "error_rate", "target": 0.05, "measured": 1 / 3, "met": False}]
    head = {"url": "http://127.0.0.1:1/<i>", "version": "<u>", "criteria": criteria, "interrupted": False}
    return {**tally.document(3.0), **head, "plan": {**plan, **more}, **changes}


@pytest.mark.slow
def test_the_page_escapes_texts_and_needs_no_network(tmp_path: Path) -> None:
    found = document()
    data, image, page_path = write_report(found, tmp_path)
    assert json.loads(data.read_text()) == found
    assert image.read_bytes().startswith(b"\x89PNG\r\n")
    page = page_path.read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(|<b>|<i>|<u>", page)
    assert re.findall(r'src="([^"]{21})', page) == ["data:image/png;base64"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<tr") == 1 + 3
    assert "error_rate at most 0.05: missed" in page


@pytest.mark.slow
@pytest.mark.parametrize("tally", [Tally(), None])
def test_a_run_without_an_answer_has_a_report_too(tmp_path: Path, tally: Tally | None) -> None:
    if tally is None:
        tally = Tally()
        tally.add(0, 1, Reply(error="no connection", reason=""))
    found = document(**tally.document(0.0))
    assert len(write_report(found, tmp_path)) == 3
    assert "<td>-</td>" in page_of(found, b"")


def test_a_load_generator_that_is_too_slow_says_so() -> None:
    tally = Tally()
    for _ in range(100):
        tally.lag.add(80.0)
    assert any("too slow for the load" in line for line in notes(document(**tally.document(1.0))))
    assert not any("too slow" in line for line in notes(document()))
