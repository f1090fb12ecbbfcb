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
        """Whether the present attempt has written anything."""

    async def write(self, text: str) -> None:
        """One more piece, not empty. Waits while all who read along lag behind."""

    def restart(self) -> None:
        """What was written is void: the answer broke off and begins again, with the same sources."""


class AnswerOutput(TextOutput, Protocol):
    """Where one producer writes an answer, for all who read along."""

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """The passages that the words to come cite. To be called before the language model is.

        Raises `CancelledError` where nobody waits for the answer any more.
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
    """Single flight: equal questions in flight are generated once over the fleet; without Redis, once a worker."""

    def join(
        self, key: FlightKey, lead: Lead, *, asked_ms: int, buffered: bool, not_before_ms: int = 0
    ) -> AbstractAsyncContextManager[FlightSubscription]:
        """Takes part. `lead` is called where this worker has to generate; who leaves last ends that.

        `asked_ms`: when the cache was asked in vain, by Redis's clock. `not_before_ms`: when
        such answers were last deleted; one asked for before is not shared. `buffered`: this caller wants no tokens.
        """

    def alone(self, lead: Lead, *, buffered: bool) -> AbstractAsyncContextManager[FlightSubscription]:
        """The same for a caller who shares with nobody."""

    def sole(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """The lead of work on `key` that nobody waits for; None where another worker has it, or Redis is down."""


class LeaderLease(Protocol):
    """What one worker of the fleet does at a time, for all. Without Redis each worker does it for itself."""

    async def hold(self, seconds: float) -> bool:
        """Whether it is this worker's, now taken or renewed, for so many seconds."""

    async def leave(self) -> None:
        """Leaves it to the others at once."""


class HealthStore(Protocol):
    """Where the fleet keeps what is known of its backends. Raises `StoreUnavailable`."""

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """Tells the fleet, by the backends' names."""

    async def read(self) -> Mapping[str, BackendHealth]:
        """What was last published and has not expired, without digests."""

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """Tells the fleet which weights the models of a backend have; `publish` does so too, where it answers."""

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]:
        """Which weights the models of a backend have, or had when it last answered; empty where that is not known.

        `early`: the fleet's memory is being made ready, and nobody else is let through yet.
        """


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
