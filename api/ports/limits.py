"""Rate limits and budgets of keys and tenants: what a question is charged, and whether it may go on.

Requests are limited by GCRA: a whole minute's requests at once, then one each time that its share of the minute has
passed. Tokens are known only afterwards. So a question is refused while the tokens of earlier ones have used up the
minute or the day, and an answer may exceed what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from api.errors import RateLimited
from api.values import owner_of

MINUTE_US: Final = 60_000_000
DAY_SECONDS: Final = 86_400
MOST_REQUESTS: Final = 1_000_000
"""In a minute: Redis counts whole microseconds."""
MOST_TOKENS: Final = 1_000_000_000
WARNED_SHARE: Final = 0.2
"""A limit with less than this left is in the warning header."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key or a tenant, 0 for none. The day's are generated tokens, the minute's also those read."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.tokens_per_day)

    def share(self, workers: int) -> Limits:
        """Returns one worker's share."""
        parts = (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        return Limits(*(max(1, part // workers) if part else 0 for part in parts))


UNLIMITED: Final = Limits()


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit: its name in headers, its size, and its window in seconds."""

    name: str
    quota: int
    window: int


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a limit, and after how many seconds all of it is there again."""

    remaining: int
    reset: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a question may go on. `left` is in the order of the policies. `wait`: seconds until it may."""

    allowed: bool
    wait: float
    left: tuple[Left, ...]


class Charge:
    """The charge of one question. `subjects`: the name and limits of its key and its tenant, those that have any."""

    __slots__ = ("counts_hits", "decision", "is_sent", "owner", "policies", "subjects")

    def __init__(self, tenant: str, subjects: Sequence[tuple[str, Limits]], *, counts_hits: bool) -> None:
        self.owner = owner_of(tenant)
        self.subjects = tuple(subjects)
        self.counts_hits = counts_hits
        self.policies = tuple(policy for name, limits in subjects for policy in _policies(name, limits))
        self.is_sent = False
        """Whether Redis has been asked. It must not be asked twice."""
        self.decision: Decision | None = None

    def check(self) -> None:
        """Raises `RateLimited` if the question was refused."""
        if self.decision is not None and not self.decision.allowed:
            spent = [one.name for one, left in self._each() if left.remaining <= 0]
            raise RateLimited(spent[0] if spent else self.policies[0].name, self.decision.wait)

    @property
    def warned(self) -> list[str]:
        """The names of limits of which little is left."""
        return [one.name for one, left in self._each() if left.remaining < WARNED_SHARE * one.quota]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the response (draft-ietf-httpapi-ratelimit-headers-10); none before the decision."""
        if self.decision is None:
            return []
        policies = ", ".join(f'"{one.name}";q={one.quota};w={one.window}' for one in self.policies)
        left = ", ".join(f'"{one.name}";r={max(0, now.remaining)};t={now.reset}' for one, now in self._each())
        warned = [("X-Ragherd-Limit-Warning", ", ".join(self.warned))] if self.warned else []
        return [("RateLimit-Policy", policies), ("RateLimit", left), *warned]

    def _each(self) -> list[tuple[Policy, Left]]:
        return [] if self.decision is None else list(zip(self.policies, self.decision.left, strict=True))


def _policies(name: str, limits: Limits) -> list[Policy]:
    kind = "tenant" if name == TENANT else "key"
    every = (
        Policy(f"{kind}-requests", limits.requests_per_minute, 60),
        Policy(f"{kind}-tokens", limits.tokens_per_minute, 60),
        Policy(f"{kind}-day", limits.tokens_per_day, DAY_SECONDS),
    )
    return [policy for policy in every if policy.quota]


TENANT: Final = "tenant"
"""The name of the subject that is a whole tenant; others have the ID of a key."""


class LimitStore(Protocol):
    """The fleet's counts in Redis. Every method raises `StoreUnavailable`."""

    async def admit(self, charge: Charge) -> None:
        """Charges a request, and sets the decision."""

    async def spend(self, charge: Charge, tokens: int, generated: int) -> None:
        """Charges the tokens of an answer: all of them, and those that were generated."""


# -- without Redis -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LocalCounts:
    """What a worker counts for one subject while Redis is away. Times are its own, in seconds."""

    requests_at: float = 0.0
    tokens: float = 0.0
    tokens_at: float = 0.0
    day: int = 0
    day_tokens: int = 0

    def look(self, limits: Limits, now: float) -> tuple[float, list[Left]]:
        """Returns how long a request has to wait, 0 if it need not, and what is left. Changes no count."""
        waits, left = [0.0], []
        if limits.requests_per_minute:
            each = 60 / limits.requests_per_minute
            ahead = max(0.0, self.requests_at - now)
            waits.append(ahead - (60 - each) if ahead > 60 - each + 1e-9 else 0.0)
            left.append(Left(math.floor((60 - ahead) / each + 1e-9), math.ceil(ahead)))
        if limits.tokens_per_minute:
            rate = limits.tokens_per_minute / 60
            debt = max(0.0, self.tokens - (now - self.tokens_at) * rate)
            waits.append((debt - limits.tokens_per_minute + 1) / rate if debt >= limits.tokens_per_minute else 0.0)
            left.append(Left(math.floor(limits.tokens_per_minute - debt), math.ceil(debt / rate)))
        if limits.tokens_per_day:
            used = self.day_tokens if self.day == now // DAY_SECONDS else 0
            rest = DAY_SECONDS - now % DAY_SECONDS
            waits.append(rest if used >= limits.tokens_per_day else 0.0)
            left.append(Left(limits.tokens_per_day - used, math.ceil(rest)))
        return max(waits), left

    def take(self, limits: Limits, now: float) -> None:
        """Counts a request."""
        if limits.requests_per_minute:
            self.requests_at = max(self.requests_at, now) + 60 / limits.requests_per_minute

    def spend(self, limits: Limits, now: float, tokens: int, generated: int) -> None:
        """Counts tokens."""
        debt = self.tokens - (now - self.tokens_at) * limits.tokens_per_minute / 60
        self.tokens, self.tokens_at = max(0.0, debt) + tokens, now
        day = int(now // DAY_SECONDS)
        self.day_tokens = (self.day_tokens if day == self.day else 0) + generated
        self.day = day
