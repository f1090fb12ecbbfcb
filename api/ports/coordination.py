"""Protocols for single flight, leader lease, backend health, breaker, bulkhead, retry budget and prefix affinity."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from api.ports.answer_cache import Claim
from api.values import (
    BackendHealth,
    CompletedAnswer,
    FlightKey,
    GroundedSources,
    Priority,
    Queued,
    QueuePlace,
    Source,
    StoredElsewhere,
    Token,
)


class TextOutput(Protocol):
    """Takes the language model's text as it comes."""

    @property
    def begun(self) -> bool:
        """True once the current attempt has written anything."""

    async def write(self, text: str) -> None:
        """Writes a piece of text, not empty. Waits while every reader lags behind."""

    def restart(self) -> None:
        """Discards what was written: the answer starts again with the same sources."""


class AnswerOutput(TextOutput, Protocol):
    """Takes an answer from its producer, for all its readers. `place`: the generation's place in the queue."""

    @property
    def place(self) -> QueuePlace: ...

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Sets the passages that the answer cites, before the language model is called.

        Raises `CancelledError` if no caller waits for the answer any more.
        """


GenerateAnswer = Callable[[AnswerOutput, Claim | None], Awaitable[CompletedAnswer]]
"""Generates an answer into an output and stores it, under the claim if there is one."""


AskEarly = Callable[[QueuePlace], None]
"""Asks for the permit of a generation that this worker will probably make."""


FlightEvent = GroundedSources | Queued | Token | CompletedAnswer | StoredElsewhere


class FlightSubscription(Protocol):
    """A caller's subscription to a flight: yields `GroundedSources`, `Token`s and `CompletedAnswer`, or
    `StoredElsewhere`. While the generation waits for a permit, it yields each new position as `Queued`.

    Cancelling `anext` loses nothing. Raises the error that ended the answer, wherever it was generated.
    """

    @property
    def led(self) -> bool:
        """True if this caller's request started the generation; known with the first event."""

    async def __anext__(self) -> FlightEvent: ...


UNKNOWN: Final = -1
"""`not_before_ms` of a caller whose look-up failed: Redis itself must say when answers were last deleted."""


class Flights(Protocol):
    """Single flight: equal questions in flight are generated once for the fleet; without Redis, once per worker."""

    def join(
        self,
        key: FlightKey,
        lead: GenerateAnswer,
        *,
        asked_ms: int,
        buffered: bool,
        not_before_ms: int = 0,
        priority: Priority = Priority.USER,
        early: AskEarly | None = None,
    ) -> AbstractAsyncContextManager[FlightSubscription]:
        """Subscribes to the flight. `lead` is called if this worker generates; the last subscriber to leave cancels it.

        `asked_ms`: when the cache missed, by Redis's clock. `not_before_ms`: when such answers were last deleted, or
        `UNKNOWN`; flights that began earlier are not joined. `buffered`: this caller wants no tokens. A generation has
        the highest `priority` of those who wait for it. `early` is called while it is not known who generates.
        """

    def alone(
        self, lead: GenerateAnswer, *, buffered: bool, priority: Priority = Priority.USER
    ) -> AbstractAsyncContextManager[FlightSubscription]:
        """Generates for one caller without sharing."""

    def exclusive(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """Leads work on `key` without subscribers; None if another worker has the lead, or without Redis."""


class LeaderLease(Protocol):
    """Work that one worker at a time does for the fleet. Without Redis each worker does it for itself."""

    async def acquire(self, seconds: float) -> bool:
        """Takes or renews the lease for `seconds`. Returns whether this worker has it."""

    async def release(self) -> None:
        """Releases the lease at once."""


class HealthStore(Protocol):
    """The fleet's shared knowledge of its backends. Every method raises `StoreUnavailable`."""

    async def publish(self, found: Mapping[str, BackendHealth]) -> None: ...

    async def read(self) -> Mapping[str, BackendHealth]: ...

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None: ...

    async def digests(self, name: str, *, early: bool = False) -> Mapping[str, str]: ...

    async def share_speeds(self, learned: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        """Publishes the seconds per prompt token by backend and model, and returns what the fleet knows."""


class Attempt(Protocol):
    """One admitted call. The caller reports its outcome exactly once."""

    async def succeeded(self, seconds: float) -> None:
        """The call worked; `seconds` is the time to its first token less the time the model took to load."""

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""

    async def ignored(self) -> None:
        """The call says nothing about Ollama: its permit is returned."""


class Breaker(Protocol):
    """The fleet's circuit breaker."""

    def attempt(self) -> AbstractAsyncContextManager[Attempt]:
        """Guards one call. Raises `BreakerOpen` if it is rejected; without a report the call counts as ignored.

        No I/O while the breaker is closed, or while it is open and its wait has not passed.
        """

    def check(self) -> None:
        """Raises `BreakerOpen` if `attempt` is sure to, so that nobody waits for a permit without need. No I/O."""

    @property
    def rejects(self) -> bool:
        """Returns whether a call would be rejected now, as far as this worker knows; no I/O."""


class Bulkhead(Protocol):
    """The fleet's limit on concurrent calls to Ollama."""

    def ask_early(self, tenant: str, place: QueuePlace) -> None:
        """Asks for a permit that is free now, before it is certain that the call is made; no I/O here.

        `permit` takes it over. `place.withdraw` returns it if the call is not made. It never queues.
        """

    def permit(
        self, tenant: str, *, place: QueuePlace | None = None, within: float | None = None, queues: bool = True
    ) -> AbstractAsyncContextManager[None]:
        """Holds a permit while the block runs. Waits for one if necessary, taking turns with other tenants.

        `place` has the call's priority, and is told its position. Default: a user's call. `within` (seconds) can only
        shorten the wait. Raises `BulkheadFull` if too many calls wait, after the longest wait, or without `queues` at
        once if no permit is free.
        """


class Retries(Protocol):
    """The retry budget."""

    def spend(self) -> bool:
        """Returns whether a retry is allowed now; if so, charges it."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the fleet knows about one backend and a prompt.

    `blocks`: how many blocks of the prompt the backend has read. `continues`: they include a whole earlier prompt.
    `crowded`: the share of its room for prompts that was used within the last minute, 0 to 1. `calls`: the fleet's
    calls to it, running and waiting.
    """

    blocks: int = 0
    continues: bool = False
    crowded: float = 0.0
    calls: int = 0


class PrefixStore(Protocol):
    """The prompts that the backends have read last. Every method raises `StoreUnavailable`."""

    async def agree(self, key: str) -> str:
        """Returns the fleet's key of digests: `key`, unless there is one."""

    async def look_up(self, chain: str) -> Mapping[str, Known]:
        """Returns what is known about each backend, by name, in one round trip."""

    async def record(self, backend: str, model: str, chain: str, prompt_blocks: int, *, key: str, alone: bool) -> str:
        """Notes that a backend has read a prompt, unless `key` is not the fleet's. Returns the fleet's key.

        `prompt_blocks`: those before the answer's. `alone`: it has forgotten all earlier prompts of the model.
        """
