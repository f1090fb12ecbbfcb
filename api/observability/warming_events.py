"""The flow of a warm-up as its observer sees it: nothing is counted as a user's, and a lost Redis is not overlooked."""

from __future__ import annotations

from api.errors import StoreUnavailable
from api.model import Usage
from api.observability.query_events import QueryEvents
from api.query.grounding import GroundingOutcome


class WarmingEvents(QueryEvents):
    """A `QueryObserver` and a `GroundingEvents`."""

    def generated(self, usage: Usage, *, stored: bool) -> None:
        """Not counted: nobody asked."""

    def grounded(self, outcome: GroundingOutcome, passages: int) -> None:
        """Not counted either."""

    def store_failed(self, error: StoreUnavailable) -> None:
        """A user's answer does without the cache; a warm-up is for nothing but the cache, and tries again."""
        raise error

    def store_late(self, error: StoreUnavailable) -> None:
        """The same: it finds the answer stored then."""
        raise error
