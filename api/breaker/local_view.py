"""What one worker knows of the fleet's breaker: enough to admit or reject without I/O.

It is also pybreaker's storage, so that `breaker.current_state` and its counters read as they always do. Writing
through pybreaker does nothing: the rules in the store alone change the breaker.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pybreaker

from api.breaker.state import Position, Reading, State

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
        self.reading: Reading | None = None

    def sending(self) -> int:
        """A ticket for a question to the store: its reply is adopted with it."""
        self._sent += 1
        return self._sent

    def adopt(self, position: Position, ticket: int) -> None:
        """Takes over what a reply says.

        Replies of several connections may arrive out of order, so an older epoch counts only when the question was
        sent after the present position was known: then the store itself went back (FLUSHALL, lost data).
        """
        if position.epoch < self.position.epoch and ticket <= self._adopted_at:
            return
        self.position = position
        self._adopted_at = self._sent
        self._deadline = self._clock() + position.wait_ms / 1000

    @property
    def remaining(self) -> float:
        """Seconds for which calls are rejected without asking."""
        return max(0.0, self._deadline - self._clock())

    @property
    def state(self) -> str:
        """The state in pybreaker's words: `closed`, `open`, `half-open`."""
        return PYBREAKER_STATES[self.position.state]

    @state.setter
    def state(self, state: str) -> None:
        """Ignored: only the store's rules change the state."""

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
        """When it opened, as last read; None unless it is open."""
        if self.reading is None or self.reading.breaker.state is not State.OPEN:
            return None
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.reading.breaker.since_ms)

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        """Ignored: the store's clock says when."""
