"""The breaker of a worker that has lost the store: the same rules on a state of its own, never pushed up.

What one worker knows of the fleet's breaker: enough to admit or reject without I/O.

It is also pybreaker's storage, so that `breaker.current_state` and its counters read as they always do. Writing
through pybreaker does nothing: the rules in the store alone change the breaker.

One admitted call: reports once how it went, and keeps a probe's permit alive meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pybreaker

from api.breaker import rules
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
    """Starts from the last known position: a known OPEN is honoured until its deadline, then one probe at a time."""

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
        """As the store would."""
        self._state, admission = rules.admit(self._state, self._policy, self._now_ms(), token, self._by)
        return admission

    def record(self, epoch: int, token: str, outcomes: list[CallOutcome]) -> Recorded:
        """As the store would."""
        self._state, recorded = rules.record(
            self._state, self._policy, self._now_ms(), epoch, token, outcomes, self._by
        )
        return recorded

    def renew(self, token: str) -> bool:
        """As the store would."""
        self._state, renewed = rules.renew(self._state, self._policy, self._now_ms(), token)
        return renewed

    def read(self) -> BreakerReading:
        """The state with its window summed up; times are of this worker's monotonic clock."""
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


class _Owner(Protocol):
    policy: BreakerPolicy

    async def report(self, epoch: int, token: str, outcome: CallOutcome) -> None: ...

    async def renew(self, token: str) -> bool: ...


class CallAttempt:
    """A call admitted in `epoch`; `token` names its permit when it is a probe, and is empty otherwise."""

    def __init__(self, owner: _Owner, epoch: int, token: str) -> None:
        self._owner = owner
        self._epoch = epoch
        self._token = token
        self.reported = False

    async def succeeded(self, seconds: float) -> None:
        """The call worked. `seconds`: to its first token, less the time the model took to load."""
        await self._report(CallOutcome.SLOW if self._is_slow(seconds) else CallOutcome.OK)

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""
        await self._report(CallOutcome.SLOW_FAILED if self._is_slow(seconds) else CallOutcome.FAILED)

    async def ignored(self) -> None:
        """The call says nothing about Ollama: a permit goes back, nothing else changes."""
        await self._report(CallOutcome.IGNORED)

    def _is_slow(self, seconds: float) -> bool:
        return seconds * 1000 >= self._owner.policy.slow_ms

    async def _report(self, outcome: CallOutcome) -> None:
        if not self.reported:
            self.reported = True
            await self._owner.report(self._epoch, self._token, outcome)

    @asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renews the permit of a probe while the block runs. Any other call has none."""
        if not self._token:
            yield
            return
        renewal = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            renewal.cancel()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._owner.policy.lease_ms / 3000)
            if not await self._owner.renew(self._token):
                return
