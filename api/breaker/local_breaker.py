"""The local breaker of a worker without Redis: the same rules on local state, which is never sent to Redis.

`LocalView` is what one worker knows of the fleet's breaker: enough to admit or reject a call without I/O. It is also
pybreaker's storage, so `breaker.current_state` and its counters read as usual. Writing through pybreaker has no effect:
only the rules in Redis change the breaker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pybreaker

from api.breaker import breaker_rules as rules
from api.breaker.state import (
    BreakerPolicy,
    BreakerReading,
    BreakerState,
    CallOutcome,
    Permission,
    Position,
    Recorded,
    State,
)


class LocalBreaker:
    """Starts from the last known position: a known OPEN is kept until its deadline, then probes go one at a time."""

    def __init__(
        self, policy: BreakerPolicy, known: Position, remaining: float, by: str, clock: Callable[[], float]
    ) -> None:
        self._policy = replace(policy, half_open_max_calls=1)
        self._by = by
        self._clock = clock
        now = self._now_ms()
        state = State.OPEN if known.state is State.HALF_OPEN else known.state
        self._state = BreakerState(
            state=state,
            epoch=now,
            since_ms=now,
            until_ms=now + round(remaining * 1000),
            opens_in_a_row=1 if state is State.OPEN else 0,
            forced=known.forced,
            reason="store_lost",
            by=by,
        )

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)

    def admit(self, token: str) -> Permission:
        """Applies the rules as Redis would."""
        self._state, admission = rules.admit(self._state, self._policy, self._now_ms(), token, self._by)
        return admission

    def record(self, epoch: int, token: str, outcomes: list[CallOutcome]) -> Recorded:
        """Applies the rules as Redis would."""
        self._state, recorded = rules.record(
            self._state, self._policy, self._now_ms(), epoch, token, outcomes, self._by
        )
        return recorded

    def renew(self, token: str) -> bool:
        """Applies the rules as Redis would."""
        self._state, renewed = rules.renew(self._state, self._policy, self._now_ms(), token)
        return renewed

    def read(self) -> BreakerReading:
        """The state with the sums of its window. Times are of this worker's monotonic clock."""
        return rules.read(self._state, self._policy, self._now_ms())


PYBREAKER_STATES = {
    State.CLOSED: pybreaker.STATE_CLOSED,
    State.OPEN: pybreaker.STATE_OPEN,
    State.HALF_OPEN: pybreaker.STATE_HALF_OPEN,
}


class LocalView(pybreaker.CircuitBreakerStorage):
    """The last known position, with its deadline on this worker's monotonic clock (seconds)."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        super().__init__(name)
        self._clock = clock
        self._sent = 0
        self._adopted_at = 0
        self._deadline = 0.0
        self.position = Position(State.CLOSED, 0, 0)
        self.reading: BreakerReading | None = None

    def sending(self) -> int:
        """A ticket for a request to Redis; its reply is adopted with it."""
        self._sent += 1
        return self._sent

    def adopt(self, position: Position, ticket: int) -> None:
        """Adopts a reply.

        Replies on several connections may arrive out of order. An older epoch counts only if the request was sent after
        the current position was known: then Redis itself lost data (FLUSHALL).
        """
        if position.epoch < self.position.epoch and ticket <= self._adopted_at:
            return
        self.position = position
        self._adopted_at = self._sent
        self._deadline = self._clock() + position.wait_ms / 1000

    @property
    def remaining(self) -> float:
        """Seconds for which calls are rejected without asking Redis."""
        return max(0.0, self._deadline - self._clock())

    @property
    def state(self) -> str:
        """The state in pybreaker's words: `closed`, `open`, `half-open`."""
        return PYBREAKER_STATES[self.position.state]

    @state.setter
    def state(self, state: str) -> None:
        """Ignored: only the rules in Redis change the state."""

    @property
    def counter(self) -> int:
        """Consecutive failures, as last read."""
        return self.reading.breaker.consecutive_failures if self.reading else 0

    @property
    def success_counter(self) -> int:
        """Successful probes since half-open, as last read."""
        return self.reading.breaker.half_open_ok if self.reading else 0

    @property
    def opened_at(self) -> datetime | None:
        """Time of opening, as last read; None unless it is open."""
        if self.reading is None or self.reading.breaker.state is not State.OPEN:
            return None
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.reading.breaker.since_ms)

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        """Ignored: Redis's clock decides."""
