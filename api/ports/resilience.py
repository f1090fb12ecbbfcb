"""What stands between the flow and Ollama: breaker, bulkhead, budget of retries."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Attempt(Protocol):
    """One admitted call through the breaker; the caller reports how it went exactly once."""

    async def succeeded(self, seconds: float) -> None:
        """The call worked; `seconds` is the time to its first token less the time the model took to load."""

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""

    async def ignored(self) -> None:
        """The call ended in a way that says nothing about Ollama: the permit goes back."""


class Breaker(Protocol):
    """The circuit breaker of the fleet, as a caller sees it."""

    def attempt(self) -> AbstractAsyncContextManager[Attempt]:
        """One call. Raises `BreakerOpen` when none is admitted; without a report the call counts as ignored.

        No I/O while the breaker is closed, or open and its wait has not passed.
        """

    def check(self) -> None:
        """Raises `BreakerOpen` where `attempt` is sure to: so that nobody waits for a permit in vain. No I/O."""

    @property
    def rejects(self) -> bool:
        """Whether a call would be rejected now, as far as this worker knows; no I/O."""


class Bulkhead(Protocol):
    """The bound on calls to Ollama at once, over the fleet."""

    def permit(
        self, tenant: str, *, background: bool = False, within: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Holds a permit while the block runs; waits for one, in turn with other tenants, if it must.

        `background` work waits behind all users. `within`: seconds that only ever shorten the wait.

        Raises `BulkheadFull` when too many wait, or for too long.
        """


class Retries(Protocol):
    """The budget of retries."""

    def spend(self) -> bool:
        """Whether one more retry may be made now; if so, it is charged."""
