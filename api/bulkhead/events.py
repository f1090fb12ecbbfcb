"""What happens at a bulkhead; a subclass counts."""

from __future__ import annotations

from api.bulkhead.state import Reason
from api.bulkhead.ticket import Priority


class BulkheadEvents:
    """Does nothing."""

    def admitted(self, bulkhead: str, priority: Priority, seconds: float) -> None:
        """A call got its permit after so many seconds."""

    def rejected(self, bulkhead: str, reason: Reason) -> None:
        """A call got none."""

    def store_lost(self, bulkhead: str, limit: int) -> None:
        """This worker goes on with its share of `limit` permits."""

    def store_found(self, bulkhead: str) -> None:
        """The permits are the fleet's again."""
