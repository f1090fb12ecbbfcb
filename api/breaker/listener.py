"""What may be heard of a breaker."""

from __future__ import annotations

import pybreaker

from api.breaker.state import Outcome, Transition


class BreakerListener(pybreaker.CircuitBreakerListener):
    """pybreaker's listener, with what the fleet adds."""

    def transition(self, cb: pybreaker.CircuitBreaker, transition: Transition) -> None:
        """Once per transition in every worker; `state_change` of pybreaker follows."""

    def outcome(self, cb: pybreaker.CircuitBreaker, outcome: Outcome) -> None:
        """Once per admitted call, in the worker that made it."""

    def not_permitted(self, cb: pybreaker.CircuitBreaker) -> None:
        """Once per rejected call, in the worker that rejected it."""

    def stale_results(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Results of this worker that came after their epoch had ended."""

    def lost_probes(self, cb: pybreaker.CircuitBreaker, count: int) -> None:
        """Permits whose holder is gone, found by this worker."""
