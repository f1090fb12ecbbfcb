"""The circuit breaker's values, its store in Redis as a protocol, and its listener.

Times are milliseconds of one clock. Every method of the store raises `StoreUnavailable` if Redis cannot be used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, Protocol

import pybreaker


class State(StrEnum):
    """The breaker's states, as JSON, Redis and logs name them."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class CallOutcome(StrEnum):
    """The outcome of one call, as the letter that the record script reads."""

    OK = "o"
    SLOW = "s"
    FAILED = "f"
    SLOW_FAILED = "F"
    IGNORED = "i"


WINDOW_KINDS: Mapping[CallOutcome, str] = MappingProxyType(
    {CallOutcome.OK: "ok", CallOutcome.SLOW: "slow", CallOutcome.FAILED: "fail", CallOutcome.SLOW_FAILED: "slowfail"}
)
"""The outcome's name in the window's hash; ignored ones are not in it."""

Forced = Literal["", "OPEN", "CLOSED"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """The thresholds. Durations in milliseconds, rates in percent."""

    enabled: bool = True
    failure_threshold: int = 5
    timeout_ms: int = 60_000
    timeout_max_ms: int = 300_000
    half_open_max_calls: int = 3
    minimum_calls: int = 20
    failure_rate: float = 50.0
    slow_rate: float = 100.0
    slow_ms: int = 30_000
    window_s: int = 60
    stable_ms: int = 300_000
    lease_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the last reset."""

    successful: int = 0
    failed: int = 0
    slow: int = 0
    ignored: int = 0
    rejected: int = 0
    stale: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class BreakerState:
    """The state that the rules work on.

    `window` maps (second, outcome) to a count; `permits` maps a token to the end of its lease.
    """

    state: State = State.CLOSED
    epoch: int = 0
    since_ms: int = 0
    until_ms: int = 0
    open_ms: int = 0
    half_open_at_ms: int = 0
    consecutive_failures: int = 0
    opens_in_a_row: int = 0
    half_open_ok: int = 0
    half_open_slow: int = 0
    half_open_probes: int = 0
    forced: Forced = ""
    reason: str = ""
    by: str = ""
    last_failure_ms: int = 0
    drained: str | None = None
    """URL of the backend if an admin has drained it, empty once it is resumed. None if nothing is known of a drain."""
    drained_ms: int = 0
    totals: Totals = field(default_factory=Totals)
    window: Mapping[tuple[int, CallOutcome], int] = field(default_factory=dict)
    permits: Mapping[str, int] = field(default_factory=dict)


NOTES: Final = frozenset({"drained", "resumed"})
"""Reasons of log entries that are not a change of state."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state as the log stores it. `at_ms` is its time; the counts are those that led to it.

    `probes` is how many calls the HALF_OPEN that ends here admitted.
    """

    from_state: State
    to_state: State
    reason: str
    by: str
    epoch: int
    wait_ms: int
    at_ms: int
    total: int = 0
    failed: int = 0
    slow: int = 0
    consecutive: int = 0
    probes: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """The breaker's position, part of every reply of the store: enough to admit or reject without asking again.

    `wait_ms` is how long to reject from now: relative, so that workers' clocks do not matter.
    """

    state: State
    epoch: int
    wait_ms: int
    forced: Forced = ""


@dataclass(frozen=True, slots=True)
class Permission:
    """The verdict on one call. A `probe` holds a permit and returns it with its outcome.

    `lost` is how many permits of crashed workers were found.
    """

    granted: bool
    probe: bool
    position: Position
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """The effect of a report: `stale` if its epoch was over, `changed` if it caused a transition."""

    position: Position
    stale: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """The breaker's state and counts at one moment. `now_ms` is Redis's clock."""

    breaker: BreakerState
    now_ms: int
    window_total: int = 0
    window_failed: int = 0
    window_slow: int = 0
    permits_in_use: int = 0

    @property
    def failure_rate(self) -> float:
        """Percent of the window's calls that failed; 0 when there are none."""
        return 100.0 * self.window_failed / self.window_total if self.window_total else 0.0

    @property
    def slow_rate(self) -> float:
        """Percent of the window's calls that were slow; 0 when there are none."""
        return 100.0 * self.window_slow / self.window_total if self.window_total else 0.0

    @property
    def position(self) -> Position:
        """The part that a worker needs."""
        breaker = self.breaker
        wait = max(0, breaker.until_ms - self.now_ms) if breaker.state is State.OPEN else 0
        return Position(breaker.state, breaker.epoch, wait, breaker.forced)


Override = Literal["OPEN", "CLOSED", "RESET"]


class BreakerStore(Protocol):
    """One breaker in Redis. Each call is one atomic step by Redis's clock."""

    async def admit(self, token: str) -> Permission:
        """Asks for admission. `token` names the permit if the call is a probe."""

    async def record(self, epoch: int, token: str, outcomes: list[CallOutcome], rejected: int) -> Recorded:
        """Reports outcomes, oldest first, of calls admitted in `epoch`. `token` is empty unless the call is a probe.

        Writes even an empty report, which tells whether the store accepts writes.
        """

    async def renew(self, token: str) -> bool:
        """Renews a probe's lease. False if the permit belongs to another call."""

    async def read(self) -> BreakerReading:
        """The breaker's state and counts at one moment."""

    async def override(self, action: Override, by: str) -> Position:
        """Starts or ends an operator's override."""

    async def drain(self, address: str, by: str, *, restores: bool = False) -> None:
        """Stores that the backend at `address` is drained; empty: that it is not. Repeating it changes nothing.

        `restores`: only if the store lost what it knew.
        """

    async def history(self, limit: int, since_ms: int = 0) -> list[Transition]:
        """Transitions, newest first."""

    def follow(self) -> AsyncIterator[list[Transition]]:
        """Transitions as they happen, oldest first; an empty list after each (re)connect. Ends by raising."""


class BreakerListener(pybreaker.CircuitBreakerListener):
    """pybreaker's listener with the fleet's additional events."""

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        """Once per transition in every worker; `state_change` of pybreaker follows."""

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: CallOutcome) -> None:
        """Once per admitted call, in the worker that made it."""

    def not_permitted(self, cb: pybreaker.CircuitBreaker) -> None:
        """Once per rejected call, in the worker that rejected it."""

    def stale_results(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Results of this worker that arrived after their epoch ended."""

    def lost_probes(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Permits of crashed workers, found by this worker."""

    def drain_changed(self, cb: pybreaker.CircuitBreaker, drained: bool) -> None:
        """Once in every worker when the backend is drained or resumed."""
