"""Which questions a load test asks and when, and the statistics of its responses. Does no I/O.

Memory does not grow with the number of requests: latencies are counted in histograms whose buckets grow by 1 %, and the
time series has at most 120 rows. Averages, minima and maxima are exact, percentiles within 0.5 %.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any, Final

from ragherd.quality_samples import Samples

# -- Questions ---------------------------------------------------------------------------------------------------------

FORMS: Final = (
    ("How do I cancel {}?", "How can I cancel {}?", "What do I have to do to cancel {}?"),
    ("What does {} cost?", "How much does {} cost?", "What is the price of {}?"),
    ("How long does it take to get {}?", "How much time does it take to get {}?", "How long do I wait to get {}?"),
    ("Which documents do I need for {}?", "What documents do I need for {}?", "Which documents are needed for {}?"),
    ("Where can I apply for {}?", "Where do I apply for {}?", "Where is it possible to apply for {}?"),
    ("How do I renew {}?", "How can I renew {}?", "What do I have to do to renew {}?"),
    ("Who is allowed to have {}?", "Who may have {}?", "Which people are allowed to have {}?"),
    ("What happens if I lose {}?", "What happens when I lose {}?", "What will happen if I lose {}?"),
)
"""Wordings of the same question: the usual one first, then paraphrases."""
THINGS: Final = (
    "a passport", "a parking permit", "a library card", "a gym membership", "a phone contract", "a train ticket",
    "a credit card", "a student visa", "a work permit", "a savings account", "a fishing license", "a driving license",
    "a birth certificate", "a season ticket", "a hotel voucher", "a building permit", "a locker key", "a gift card",
    "a travel insurance policy", "a company badge",
)  # fmt: skip
PLACES: Final = ("", " in Berlin", " in Madrid", " in Toronto", " in Nairobi", " in Osaka", " in Sydney", " in Lima")
MOST_TOPICS: Final = len(FORMS) * len(THINGS) * len(PLACES)

Topic = Sequence[str]
"""Wordings of one question."""


def generated_topics(count: int, seed: int) -> list[Topic]:
    """Returns built-in topics in random order."""
    every = [
        [form.format(f"{thing}{place}") for form in forms] for place, thing, forms in product(PLACES, THINGS, FORMS)
    ]
    return random.Random(seed).sample(every, count)  # noqa: S311 - not a secret


def topics_of(samples: Samples) -> list[Topic]:
    """Returns the topics of a file. Questions with the same intent are paraphrases. Without intents, there are none."""
    groups: dict[str, dict[str, None]] = {}
    for place, question in enumerate(samples.asked):
        groups.setdefault(samples.intents[place] if samples.intents else question, {})[question] = None
    return [list(group) for group in groups.values()]


def drawn(topics: Sequence[Topic], zipf: float, paraphrases: float, seed: int) -> Iterator[str]:
    """Yields questions without end. The topic of rank r is asked in proportion to 1 / r ** zipf.

    A share of the questions is worded as one of the topic's paraphrases.
    """
    chance = random.Random(seed)  # noqa: S311 - not a secret
    weights = list(accumulate(rank**-zipf for rank in range(1, len(topics) + 1)))
    while True:
        [topic] = chance.choices(topics, cum_weights=weights)
        is_paraphrase = chance.random() < paraphrases and len(topic) > 1
        yield topic[chance.randrange(1, len(topic))] if is_paraphrase else topic[0]


# -- Times -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """When requests start. All times are seconds since the start of the run.

    With a `rate` the loop is open: requests start at random times (Poisson), however slow the service is. Otherwise it
    is closed: users ask one question after another.

    A ramp raises the load linearly from nothing. After it, a spike multiplies the load for the last `spike_seconds` of
    every `spike_every` seconds.
    """

    requests: int | None
    seconds: float | None
    concurrency: int
    rate: float | None = None
    think: float = 0.0
    ramp: float = 0.0
    spike: float = 1.0
    spike_every: float = 30.0
    spike_seconds: float = 5.0
    timeout: float = 60.0
    seed: int = 1

    @property
    def is_open(self) -> bool:
        return self.rate is not None

    @property
    def workers(self) -> int:
        """Requests that can be open at once."""
        return self.concurrency if self.is_open else max(self.concurrency, math.ceil(self.concurrency * self.spike))

    def load(self, at: float) -> float:
        """Returns the load at a time, as a multiple of the normal one."""
        if at < self.ramp:
            return at / self.ramp
        is_spike = (at - self.ramp) % self.spike_every >= self.spike_every - self.spike_seconds
        return self.spike if is_spike else 1.0

    def arrivals(self) -> Iterator[float]:
        """Yields the start of each request of an open loop."""
        assert self.rate is not None
        chance = random.Random(self.seed)  # noqa: S311 - not a secret
        most, at, made = max(1.0, self.spike), 0.0, 0
        while made != self.requests:
            at += chance.expovariate(self.rate * most)
            if self.seconds is not None and at >= self.seconds:
                return
            if chance.random() * most < self.load(at):
                made += 1
                yield at

    def user_starts(self, user: int, at: float) -> float:
        """Returns when a user of a closed loop, who is ready now, may ask next. Users beyond `concurrency` only ask
        during spikes.
        """
        if user < self.concurrency:
            return max(at, self.ramp * user / self.concurrency)
        at = max(at, self.ramp)
        if self.load(at) > 1:
            return at
        period = (at - self.ramp) // self.spike_every
        # Rounding may leave the start of a spike just before it.
        return math.nextafter(self.ramp + (period + 1) * self.spike_every - self.spike_seconds, math.inf)

    def thinks(self, user: int) -> Iterator[float]:
        """Yields the pauses of a user: random ones, with `think` as their average."""
        chance = random.Random(f"{self.seed} {user}")  # noqa: S311 - not a secret
        while True:
            yield chance.expovariate(1 / self.think) if self.think else 0.0


# -- Statistics --------------------------------------------------------------------------------------------------------

PERCENTILES: Final = (50, 95, 99)
MOST_ROWS: Final = 120
GROWTH: Final = math.log(1.01)
"""The width of a bucket, as a logarithm."""
_FLOOR: Final = 0.001


class Histogram:
    """Times in milliseconds."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, milliseconds: float) -> None:
        self.count += 1
        self.total += milliseconds
        self.least = min(self.least, milliseconds)
        self.most = max(self.most, milliseconds)
        self._buckets[math.floor(math.log(max(milliseconds, _FLOOR)) / GROWTH)] += 1

    def merge(self, other: Histogram) -> None:
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self._buckets.update(other._buckets)

    def counts(self) -> dict[int, int]:
        """Returns the count of each bucket. Bucket N has the times from exp(N * GROWTH) on."""
        return dict(sorted(self._buckets.items()))

    def percentile(self, percent: float) -> float | None:
        """Returns the nearest rank's bucket, at its middle."""
        wanted, seen = math.ceil(self.count * percent / 100), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(max(math.exp((bucket + 0.5) * GROWTH), self.least), self.most)
        return None

    def figures(self) -> dict[str, float | None]:
        """Returns the average, the extremes and the percentiles; None for all of them if there is no time."""
        average, least, most = (self.total / self.count, self.least, self.most) if self.count else (None, None, None)
        percentiles = {f"p{one}": self.percentile(one) for one in PERCENTILES}
        found = {"avg": average, "min": least, "max": most, **percentiles}
        return {name: None if value is None else round(value, 3) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended: the cache's part in its answer, or the kind of its error and the reason."""

    status: str = ""
    kind: str = ""
    error: str = ""
    reason: str = ""
    http_status: int = 0


TIMEOUT: Final = "timeout"


@dataclass(slots=True)
class Row:
    """The requests that were to start within one interval."""

    latency: Histogram = field(default_factory=Histogram)
    requests: int = 0
    failed: int = 0
    hits: int = 0

    def merge(self, other: Row) -> None:
        self.latency.merge(other.latency)
        self.requests += other.requests
        self.failed += other.failed
        self.hits += other.hits

    def document(self, number: int, seconds: float) -> dict[str, Any]:
        figures = self.latency.figures()
        return {
            "second": number * seconds,
            "requests": self.requests,
            "failed": self.failed,
            "hits": self.hits,
            "requests_per_second": round(self.requests / seconds, 3),
            **{name: figures[name] for name in ("p50", "p95", "max")},
        }


@dataclass(slots=True)
class Tally:
    """The statistics of a run.

    Latency is that of answers, and the time that timed-out requests waited. Errors that come at once do not improve it.
    """

    latency: Histogram = field(default_factory=Histogram)
    by_kind: dict[str, Histogram] = field(default_factory=dict)
    lag: Histogram = field(default_factory=Histogram)
    statuses: Counter[str] = field(default_factory=Counter)
    http_statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    unfinished: int = 0
    rows: list[Row] = field(default_factory=list)
    row_seconds: float = 1.0

    def add(self, start: float, end: float, reply: Reply) -> None:
        """Counts a request. `start` is when it was to start."""
        milliseconds = 1000 * (end - start)
        row = self._row(start)
        self.requests += 1
        row.requests += 1
        if reply.http_status:
            self.http_statuses[str(reply.http_status)] += 1
        if reply.error:
            self.failed += 1
            row.failed += 1
            self.errors[reply.error] += 1
            self.reasons.setdefault(reply.error, reply.reason)
        else:
            self.statuses[reply.status] += 1
            row.hits += reply.status == "hit"
            name = f"{reply.status}_{reply.kind}" if reply.kind else reply.status
            self.by_kind.setdefault(name, Histogram()).add(milliseconds)
        if reply.error in ("", TIMEOUT):
            self.latency.add(milliseconds)
            row.latency.add(milliseconds)

    def _row(self, at: float) -> Row:
        """Returns the row of a time. If there are too many, the intervals are doubled."""
        while at >= MOST_ROWS * self.row_seconds:
            pairs = zip(self.rows[::2], [*self.rows[1::2], Row()], strict=False)
            merged = []
            for first, second in pairs:
                first.merge(second)
                merged.append(first)
            self.rows, self.row_seconds = merged, 2 * self.row_seconds
        number = int(at / self.row_seconds)
        self.rows.extend(Row() for _ in range(number + 1 - len(self.rows)))
        return self.rows[number]

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses), as the service counts it."""
        looked_up = self.statuses["hit"] + self.statuses["miss"]
        return self.statuses["hit"] / looked_up if looked_up else 0.0

    @property
    def error_rate(self) -> float:
        return self.failed / self.requests if self.requests else 0.0

    def document(self, seconds: float) -> dict[str, Any]:
        """Returns the figures as JSON."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "seconds": round(seconds, 3),
            "latency_ms": self.latency.figures(),
            "by_status": dict(self.statuses),
            "hit_rate": round(self.hit_rate, 6),
            "error_rate": round(self.error_rate, 6),
            "requests_per_second": round(self.requests / seconds, 3) if seconds else 0.0,
            "unfinished": self.unfinished,
            "latency_ms_by_status": {name: one.figures() for name, one in sorted(self.by_kind.items())},
            "requests_by_status": {name: one.count for name, one in sorted(self.by_kind.items())},
            "by_http_status": dict(self.http_statuses),
            "errors": dict(self.errors),
            "error_examples": self.reasons,
            "generator_lag_ms": self.lag.figures(),
            "series": [row.document(number, self.row_seconds) for number, row in enumerate(self.rows)],
        }
