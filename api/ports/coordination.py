"""Single flight, as the flow sees it.

What the workers of the fleet do for one another.

What stands between the flow and Ollama: breaker, bulkhead, budget of retries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from api.ports.cache import Claim
from api.values import BackendHealth, CompletedAnswer, FlightKey, GroundedSources, Source, StoredElsewhere, Token


class TextOutput(Protocol):
    """Where the language model's words go, as they come."""

    @property
    def begun(self) -> bool:
        """Whether the current attempt has written anything."""

    async def write(self, text: str) -> None:
        """Writes a piece of text, not empty. Waits while every reader lags behind."""

    def restart(self) -> None:
        """Discards what was written: the answer starts again with the same sources."""


class AnswerOutput(TextOutput, Protocol):
    """Where one producer writes an answer, for all who read along."""

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Sets the passages that the answer cites, before the language model is called.

        Raises `CancelledError` if no caller waits for the answer any more.
        """


Lead = Callable[[AnswerOutput, Claim | None], Awaitable[CompletedAnswer]]
"""Generates an answer into an output, and stores it, under the claim where there is one."""


class FlightSubscription(Protocol):
    """A caller's part in a flight: gives `GroundedSources`, `Token`s and `CompletedAnswer`, or `StoredElsewhere`.

    A cancelled `anext` loses nothing. Raises what ended the answer, wherever it was generated.
    """

    @property
    def led(self) -> bool:
        """Whether it was generated because this caller asked; known with the first event."""

    async def __anext__(self) -> GroundedSources | Token | CompletedAnswer | StoredElsewhere: ...


class Flights(Protocol):
    """Single flight: equal questions in flight are generated once for the fleet; without Redis, once per worker."""

    def join(
        self, key: FlightKey, lead: Lead, *, asked_ms: int, buffered: bool, not_before_ms: int = 0
    ) -> AbstractAsyncContextManager[FlightSubscription]:
        """Subscribes to the flight. `lead` is called if this worker generates; the last subscriber to leave cancels it.

        `asked_ms`: when the cache missed, by Redis's clock. `not_before_ms`: when such answers were last deleted;
        flights that began earlier are not joined. `buffered`: this caller wants no tokens.
        """

    def alone(self, lead: Lead, *, buffered: bool) -> AbstractAsyncContextManager[FlightSubscription]:
        """The same for a caller who shares with nobody."""

    def exclusive(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """Leads work on `key` without subscribers; None if another worker has the lead, or without Redis."""


class LeaderLease(Protocol):
    """Work that one worker at a time does for the fleet. Without Redis each worker does it for itself."""

    async def acquire(self, seconds: float) -> bool:
        """Takes or renews the lease for `seconds`. Whether this worker has it."""

    async def release(self) -> None:
        """Releases the lease at once."""


class HealthStore(Protocol):
    """The fleet's shared knowledge of its backends. Every method raises `StoreUnavailable`."""

    async def publish(self, found: Mapping[str, BackendHealth]) -> None: ...

    async def read(self) -> Mapping[str, BackendHealth]: ...

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None: ...

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]: ...


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
