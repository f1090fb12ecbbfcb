"""Rate limits and budgets of keys and tenants: what a question is charged, and whether it may go on.

Requests are limited by GCRA: a whole minute's requests at once, then one each time that its share of the minute has
passed. Tokens are known only afterwards. So a question is refused while the tokens of earlier ones have used up the
minute, the day or the month, and an answer may exceed what is left.
"""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Final, Protocol

from api.errors import RateLimited
from api.values import owner_of

MINUTE_US: Final = 60_000_000
DAY_SECONDS: Final = 86_400
MONTH_SECONDS: Final = 31 * DAY_SECONDS
"""The longest one. A budget of a month begins with each month (UTC)."""
MOST_REQUESTS: Final = 1_000_000
"""In a minute: Redis counts whole microseconds."""
MOST_TOKENS: Final = 1_000_000_000
MOST_STREAMS: Final = 10_000
CHARGED: Final = "charged"
"""Key of a request's state: a charge that was made before the request took the full path."""
SET_BACK_SECONDS: Final = 60
"""Counts that are further in the future are void: the clock was set back, and they would refuse until it is there."""
WARNED_SHARE: Final = 0.2
"""A limit with less than this left is in the warning header."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key or a tenant, 0 for none.

    Those of a day and a month are generated tokens, those of a minute also the tokens read.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    concurrent_streams: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.requests_per_minute
            or self.tokens_per_minute
            or self.tokens_per_day
            or self.tokens_per_month
            or self.concurrent_streams
        )

    @property
    def rates(self) -> tuple[int, int, int, int]:
        """All but the number of streams, in the order of the scripts."""
        return self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day, self.tokens_per_month

    def share(self, workers: int) -> Limits:
        """Returns one worker's share."""
        return Limits(*(max(1, part // workers) if part else 0 for part in astuple(self)))


UNLIMITED: Final = Limits()
TENANT: Final = "tenant"
"""The name of the subject that is a whole tenant; others have the ID of a key."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit: its name in headers, its size, and its window in seconds."""

    name: str
    quota: int
    window: int


class LimitPlan:
    """What limits the questions of one key: each question has the same, so it is made once.

    `subjects`: the name and limits of the key and its tenant, those that have any.
    """

    def __init__(self, tenant: str, *subjects: tuple[str, Limits]) -> None:
        self.owner = owner_of(tenant)
        self.subjects = subjects
        self.rates = [part for _, limits in subjects for part in limits.rates]
        self.has_rates = any(self.rates)
        self.has_tokens = any(part for _, limits in subjects for part in limits.rates[1:])
        self.streams = [(name, limits.concurrent_streams) for name, limits in subjects if limits.concurrent_streams]
        self.policies = [policy for name, limits in subjects for policy in _policies(name, limits)]
        self._warned_below = [WARNED_SHARE * one.quota for one in self.policies]
        policies = ", ".join(f'"{one.name}";q={one.quota};w={one.window}' for one in self.policies)
        self._policy_header = b"ratelimit-policy", policies.encode()
        self._left = ", ".join(f'"{one.name}";r=%d;t=%d' for one in self.policies)

    def warned(self, left: Sequence[int]) -> list[str]:
        """The names of limits of which little is left."""
        each = zip(self.policies, self._warned_below, left[::2], strict=True)
        return [policy.name for policy, warned_below, remaining in each if remaining < warned_below]

    def headers(self, left: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """The headers of a response (draft-ietf-httpapi-ratelimit-headers-10)."""
        shown = tuple([max(number, 0) for number in left])
        return [self._policy_header, (b"ratelimit", (self._left % shown).encode())]


@lru_cache(4096)
def plan_of(tenant: str, key: str, limits: Limits, tenant_limits: Limits) -> LimitPlan:
    """Returns the plan of a key in Redis, or without its ID of a tenant."""
    subjects = ((key, limits), (TENANT, tenant_limits))
    return LimitPlan(tenant, *[(name, one) for name, one in subjects if one])


def _policies(name: str, limits: Limits) -> Iterator[Policy]:
    kind = "tenant" if name == TENANT else "key"
    windows = (("requests", 60), ("tokens", 60), ("day", DAY_SECONDS), ("month", MONTH_SECONDS))
    for (what, window), quota in zip(windows, limits.rates, strict=True):
        if quota:
            yield Policy(f"{kind}-{what}", quota, window)


@dataclass(slots=True)
class Decision:
    """Whether a question may go on. `wait`: seconds until it may, 0 for now.

    `left`: for each policy how much is left, and after how many seconds all of it is there again.
    """

    wait: float
    left: Sequence[int]


class Charge:
    """The charge of one question."""

    __slots__ = ("asked_at", "counts_hits", "decision", "is_recalled", "is_sent", "must_ask", "plan", "warned")

    def __init__(self, plan: LimitPlan, *, counts_hits: bool) -> None:
        self.plan = plan
        self.counts_hits = counts_hits
        self.is_sent = False
        """Whether Redis has been asked. It must not be asked twice."""
        self.asked_at = 0.0
        """When the decision was asked for, by the monotonic clock: the wait begins no earlier."""
        self.is_recalled = False
        """Whether the decision is that of an earlier request."""
        self.must_ask = False
        """Whether no earlier decision may be taken over."""
        self.decision: Decision | None = None
        self.warned: list[str] = []
        """The names of limits of which little is left."""

    @property
    def charges_hits(self) -> bool:
        """Whether an answer from the cache is charged too."""
        return self.counts_hits and self.plan.has_rates

    def decide(self, wait: float, left: Sequence[int]) -> None:
        """Sets the decision."""
        self.decision = Decision(wait, left)
        self.warned = self.plan.warned(left)

    def refuse_again(self, earlier: Charge, wait: float) -> None:
        """Takes over the decision of a charge that was refused within the last second."""
        assert earlier.decision is not None, "it was refused"
        self.decision, self.warned, self.is_recalled = Decision(wait, earlier.decision.left), earlier.warned, True

    @property
    def is_refused(self) -> bool:
        """Whether a limit refuses the question."""
        return self.decision is not None and self.decision.wait > 0

    def check(self) -> None:
        """Raises `RateLimited` if the question was refused."""
        if self.decision is not None and self.decision.wait > 0:
            each = zip(self.plan.policies, self.decision.left[::2], strict=True)
            spent = [policy.name for policy, remaining in each if remaining <= 0]
            raise RateLimited(spent[0] if spent else self.plan.policies[0].name, self.decision.wait)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the response; none before the decision."""
        if self.decision is None or not self.plan.has_rates:
            return []
        headers = self.plan.headers(self.decision.left)
        if self.warned:
            headers.append((b"x-ragherd-limit-warning", ", ".join(self.warned).encode()))
        return headers


class LimitStore(Protocol):
    """The fleet's counts in Redis. Every method raises `StoreUnavailable`."""

    async def admit(self, charge: Charge) -> None:
        """Charges a request, and sets the decision."""

    async def spend(self, plan: LimitPlan, tokens: int, generated: int) -> None:
        """Charges the tokens of an answer: all of them, and those that were generated."""

    async def open_stream(self, plan: LimitPlan, stream: str) -> str | None:
        """Gives a stream a lease. Returns the name of the subject that has too many streams, or None."""

    async def renew_streams(self, owner: str, subject: str, streams: Sequence[str]) -> None:
        """Renews the leases of streams."""

    async def close_stream(self, plan: LimitPlan, stream: str) -> None:
        """Returns the lease of a stream."""


# -- without Redis -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LocalCounts:
    """What a worker counts for one subject while Redis is away. Times are its own, in seconds."""

    requests_at: float = 0.0
    tokens: float = 0.0
    tokens_at: float = 0.0
    day: int = 0
    day_tokens: int = 0
    month: tuple[int, int] = (0, 0)
    month_tokens: int = 0

    def look(self, limits: Limits, now: float) -> tuple[float, list[int]]:
        """Returns how long a request has to wait, 0 if it need not, and what is left. Changes no count."""
        waits, left = [0.0], []
        if limits.requests_per_minute:
            each = 60 / limits.requests_per_minute
            ahead = self._ahead(now)
            waits.append(ahead - (60 - each) if ahead > 60 - each + 1e-9 else 0.0)
            left += [math.floor((60 - ahead) / each + 1e-9), math.ceil(ahead)]
        if limits.tokens_per_minute:
            rate = limits.tokens_per_minute / 60
            debt = self._owed(rate, now)
            waits.append((debt - limits.tokens_per_minute + 1) / rate if debt >= limits.tokens_per_minute else 0.0)
            left += [math.floor(limits.tokens_per_minute - debt), math.ceil(debt / rate)]
        if limits.tokens_per_day:
            used = self.day_tokens if self.day == now // DAY_SECONDS else 0
            waits.append(_budget(left, limits.tokens_per_day - used, DAY_SECONDS - now % DAY_SECONDS))
        if limits.tokens_per_month:
            used = self.month_tokens if self.month == _month(now) else 0
            waits.append(_budget(left, limits.tokens_per_month - used, _month_end(now) - now))
        return max(waits), left

    def _ahead(self, now: float) -> float:
        """Seconds until the requests so far are paid off: up to a minute, unless the clock was set back."""
        ahead = max(0.0, self.requests_at - now)
        return ahead if ahead <= 60 + SET_BACK_SECONDS else 0.0

    def _owed(self, rate: float, now: float) -> float:
        """Tokens that the minute still owes."""
        if self.tokens_at > now + SET_BACK_SECONDS:
            return 0.0
        return max(0.0, self.tokens - (now - self.tokens_at) * rate)

    def take(self, limits: Limits, now: float) -> None:
        """Counts a request."""
        if limits.requests_per_minute:
            self.requests_at = now + self._ahead(now) + 60 / limits.requests_per_minute

    def spend(self, limits: Limits, now: float, tokens: int, generated: int) -> None:
        """Counts tokens."""
        self.tokens, self.tokens_at = self._owed(limits.tokens_per_minute / 60, now) + tokens, now
        day, month = int(now // DAY_SECONDS), _month(now)
        self.day_tokens = (self.day_tokens if day == self.day else 0) + generated
        self.month_tokens = (self.month_tokens if month == self.month else 0) + generated
        self.day, self.month = day, month


def _budget(left: list[int], remaining: int, seconds: float) -> float:
    """Adds what is left of a budget that ends in some seconds. Returns how long a request has to wait."""
    left += [remaining, math.ceil(seconds)]
    return seconds if remaining <= 0 else 0.0


def _month(now: float) -> tuple[int, int]:
    found = time.gmtime(now)
    return found.tm_year, found.tm_mon


def _month_end(now: float) -> float:
    year, month = _month(now)
    return calendar.timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0))
