"""The breaker of a worker that has lost the store: the same rules on a state of its own, never pushed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from api.breaker import rules
from api.breaker.state import Admission, BreakerState, Outcome, Policy, Position, Reading, Recorded, State


class LocalBreaker:
    """Starts from the last known position: a known OPEN is honoured until its deadline, then one probe at a time."""

    def __init__(self, policy: Policy, known: Position, remaining: float, by: str, clock: Callable[[], float]) -> None:
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

    def admit(self, token: str) -> Admission:
        """As the store would."""
        self._state, admission = rules.admit(self._state, self._policy, self._now_ms(), token, self._by)
        return admission

    def record(self, epoch: int, token: str, outcomes: list[Outcome]) -> Recorded:
        """As the store would."""
        self._state, recorded = rules.record(
            self._state, self._policy, self._now_ms(), epoch, token, outcomes, self._by
        )
        return recorded

    def renew(self, token: str) -> bool:
        """As the store would."""
        self._state, renewed = rules.renew(self._state, self._policy, self._now_ms(), token)
        return renewed

    def read(self) -> Reading:
        """The state with its window summed up; times are of this worker's monotonic clock."""
        return rules.read(self._state, self._policy, self._now_ms())
