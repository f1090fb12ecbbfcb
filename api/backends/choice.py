"""The backends: which of them may take a call, in which order, after which faults, and what lost calls leave.

A drained backend gets no calls. Tiers and weights come from OLLAMA_BASE_URL. Health only orders the backends: whether
one may be called is up to its breaker.

`OverdueCalls` keeps the permits of calls that were given up before their first token, until the backend answers again.
Ollama does not notice that a caller has left while it reads the prompt. If the permit were free at once, the next call
would wait behind that prompt, run into its own deadline, and count as a failure. So the permit is kept, and the backend
is asked for one token. Its answer shows that the backend is free. If it does not even answer that within another
first-token deadline, it hangs, and its breaker opens. Otherwise a bulkhead of 1 would need as many deadlines as the
breaker needs failures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

from api.cancellation import cancel_and_wait, log_failure
from api.errors import BackendsDrained, UpstreamError, UpstreamFault
from api.ports.coordination import Breaker, Bulkhead
from api.ports.telemetry import Telemetry
from api.values import BackendHealth, GenerationRequest, Retry, model_key


@dataclass(frozen=True, slots=True)
class BackendState:
    """The state of one backend. None: unknown (not probed yet), which does not count against it.

    `rejects`: its breaker admits no call. `outstanding`: calls to it that have not ended, this worker's or the fleet's.
    `preference`: what the fleet knows about it and the prompt.
    """

    name: str
    rejects: bool = False
    reachable: bool | None = None
    has_model: bool | None = None
    resident: bool | None = None
    outstanding: int = 0
    tier: int = 1
    weight: int = 1
    preference: Preference | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """How well a backend suits a prompt.

    `worth`: how many calls busier it may be, because it has read the beginning of the prompt. `crowded`: how much of
    its room for prompts is in use, 0 to 1. `calls`: the fleet's calls to it. `limit`: its permits; None: unknown.
    """

    worth: float = 0.0
    crowded: float = 0.0
    calls: int = 0
    limit: int | None = None


NO_PREFERENCE: Final = Preference()


def in_order(candidates: Sequence[BackendState], turn: int) -> list[str]:
    """Returns the names, best first.

    One whose breaker rejects comes after all others, then one that did not answer, then one of a higher tier, then one
    without the model in memory, then one without a free permit, then the one that is busier for its weight, less what
    it knows of the prompt. Equals take turns, by weight. One without the model is left out, unless all are.
    """
    holders = [candidate for candidate in candidates if candidate.has_model is not False] or list(candidates)
    return [candidate.name for candidate in sorted(_taking_turns(holders, turn), key=_reasons_against)]


def _taking_turns(holders: Sequence[BackendState], turn: int) -> list[BackendState]:
    """One with weight 2 comes first twice as often as one with weight 1."""
    rounds = range(max((holder.weight for holder in holders), default=0))
    turns = [holder for number in rounds for holder in holders if holder.weight > number]
    shift = turn % len(turns) if turns else 0
    return list(dict.fromkeys(turns[shift:] + turns[:shift]))


def _reasons_against(candidate: BackendState) -> tuple[bool, bool, int, bool, bool, float, float]:
    preference = candidate.preference or NO_PREFERENCE
    return (
        candidate.rejects,
        candidate.reachable is False,
        candidate.tier,
        candidate.resident is False,
        preference.limit is not None and candidate.outstanding >= preference.limit,
        candidate.outstanding / candidate.weight - preference.worth,
        preference.crowded,
    )


FREE: Final = frozenset(
    {
        UpstreamFault.CONNECT_FAILED,
        UpstreamFault.CONNECT_TIMEOUT,
        UpstreamFault.CONNECTION_STALE,
        UpstreamFault.POOL_TIMEOUT,
        UpstreamFault.MODEL_NOT_FOUND,
        UpstreamFault.PATH_NOT_FOUND,
    }
)
CHARGED: Final = frozenset(
    {
        UpstreamFault.CONNECTION_LOST,
        UpstreamFault.FIRST_TOKEN_TIMEOUT,
        UpstreamFault.SERVER_ERROR,
        UpstreamFault.BUSY,
        UpstreamFault.STREAM_TRUNCATED,
    }
)
UNREACHABLE: Final = frozenset({UpstreamFault.CONNECT_FAILED, UpstreamFault.CONNECT_TIMEOUT})
EMBEDDING_CHARGED: Final = CHARGED | {
    UpstreamFault.EMBED_FAILED,
    UpstreamFault.INVALID_RESPONSE,
    UpstreamFault.UNAUTHORIZED,
}
"""Charged faults of embeddings. They have no side effect and no first token, so more faults allow a retry."""


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    """A caller's limits. `total`: seconds for the whole call, including queueing and all attempts.

    `charged`: the faults that allow one further attempt, besides those in `FREE`. `waits_again`: whether a call that
    waited in one line for as long as it may joins the line of another backend.
    """

    total: float
    charged: frozenset[UpstreamFault] = CHARGED
    waits_again: bool = False


LONG_READING: Final = 1.0
"""Seconds from which reading a prompt does not make a call slow."""
WORTH_KEEPING: Final = 0.5
"""Seconds of reading for which a permit is kept."""


class Reader(Protocol):
    """A language model on one backend that reads prompts."""

    def reading_seconds(self, request: GenerationRequest) -> float:
        """Returns the seconds to allow for reading the prompt."""

    async def answer_one_token(self, model: str, seconds: float) -> None:
        """Asks for one token, and waits so long for it. Raises `UpstreamError`."""


@dataclass(slots=True, eq=False)
class _Kept:
    """A kept permit. `read_at`: when the prompt should be read, on the monotonic clock."""

    permit: AsyncExitStack
    model: str
    read_at: float


class HangBreaker(Protocol):
    """A circuit breaker that can be told that its backend hangs."""

    @property
    def epoch(self) -> int:
        """The current epoch, as far as this worker knows; no I/O."""

    async def hangs(self, epoch: int) -> None:
        """Opens the breaker, unless its state has changed since `epoch`."""


class OverdueCalls:
    """The overdue calls of one worker to one backend. `first_token`: seconds that the backend has for a token."""

    def __init__(
        self, name: str, reader: Reader, breaker: HangBreaker, first_token: float, events: Telemetry | None = None
    ) -> None:
        self._name = name
        self._reader = reader
        self._breaker = breaker
        self._first_token = first_token
        self._events = events or Telemetry()
        self._kept: list[_Kept] = []
        self._asking: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Kept permits."""
        return len(self._kept)

    def reads_on(self, request: GenerationRequest, error: BaseException, seconds: float) -> float | None:
        """Returns how long the backend still reads the prompt of a call that ended with `error` after `seconds`.

        None if it is not worth a permit, or if the call never reached the model.
        """
        if isinstance(error, UpstreamError) and error.fault is UpstreamFault.FIRST_TOKEN_TIMEOUT:
            return 0.0  # the prompt should have been read
        left = isinstance(error, asyncio.CancelledError) or (
            isinstance(error, UpstreamError) and error.fault is UpstreamFault.TOTAL_TIMEOUT
        )
        if not left:
            return None
        rest = self._reader.reading_seconds(request) - seconds
        return rest if rest >= WORTH_KEEPING else None

    def keep(self, permit: AsyncExitStack, model: str, reading: float) -> None:
        """Takes over a permit. `reading`: seconds that the backend still needs to read the prompt."""
        self._kept.append(_Kept(permit, model, time.monotonic() + reading))
        self._events.overdue(self._name, self.count)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._keep_asking(), name=f"overdue-{self._name}")
            log_failure(self._asking)

    async def _keep_asking(self) -> None:
        try:
            while self._kept:
                asked = list(self._kept)
                await self._ask_once(asked)
                await self._release(asked)
        finally:
            await self._release(list(self._kept))  # after an unexpected error nobody would ask for the rest

    async def _ask_once(self, asked: list[_Kept]) -> None:
        """Asks for a token behind the prompts that the backend still reads."""
        epoch = self._breaker.epoch
        reading = max(0.0, max(kept.read_at for kept in asked) - time.monotonic())
        try:
            await self._reader.answer_one_token(asked[-1].model, reading + self._first_token)
        except UpstreamError as error:
            if error.fault is UpstreamFault.FIRST_TOKEN_TIMEOUT:
                self._events.backend_hangs(self._name)
                await self._breaker.hangs(epoch)

    async def _release(self, kept: list[_Kept]) -> None:
        self._kept = [one for one in self._kept if one not in kept]
        self._events.overdue(self._name, self.count)
        for one in kept:
            await one.permit.aclose()

    async def aclose(self) -> None:
        """Releases all permits."""
        if self._asking is not None:
            await cancel_and_wait([self._asking])
        await self._release(list(self._kept))


class Drainable(Protocol):
    """Knows whether an admin has drained a backend."""

    drained: bool


@dataclass(slots=True)
class InUse:
    """A backend that is not drained."""

    drained: bool = False


T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one attempt. `until`: the end of the call, on the monotonic clock; `total`: its length in seconds.

    `retry`: where the call may be repeated if it fails. `queues`: whether it waits for a permit.
    """

    until: float
    total: float
    retry: Retry = "here"
    clock: Clock = time.monotonic
    queues: bool = True

    @property
    def remaining(self) -> float:
        """Seconds left for the call."""
        return max(0.0, self.until - self.clock())


@dataclass(slots=True, eq=False)
class Backend(Generic[T]):
    """One Ollama for one kind of call. `outstanding`: this worker's calls that have not ended.

    The lowest `tier` is used first. `weight` is a share of the tier's calls. `drain` is the same for all kinds of
    calls.
    """

    name: str
    service: T
    bulkhead: Bulkhead
    breaker: Breaker
    outstanding: int = 0
    tier: int = 1
    weight: int = 1
    drain: Drainable = field(default_factory=InUse)
    wants_probe: Callable[[], bool] = lambda: False
    """Whether its breaker waits for a call to probe it. Then its tier does not matter, or it would stay open."""
    overdue: OverdueCalls | None = None
    """Keeps the permits of generations that were given up before their first token."""


class Backends(Generic[T]):
    """The backends for one kind of call.

    `health` returns a backend's last probe, None if it is unknown. `had` returns whether a backend had a model (by
    `model_key`) when it last answered.
    """

    def __init__(
        self,
        members: Sequence[Backend[T]],
        health: Callable[[str], BackendHealth | None],
        had: Callable[[str, str], bool] = lambda _backend, _model: False,
    ) -> None:
        self._members = {member.name: member for member in members}
        self._health = health
        self._had = had
        self._turns = count()
        self._lowest = min((member.tier for member in members), default=1)
        self.has_tiers = len({member.tier for member in members}) > 1

    @property
    def has_choice(self) -> bool:
        """True if there are several backends that are not drained."""
        return sum(not member.drain.drained for member in self._members.values()) > 1

    @property
    def only(self) -> Backend[T] | None:
        """The backend that is not drained; None if there are several, or none."""
        members = [member for member in self._members.values() if not member.drain.drained]
        return members[0] if len(members) == 1 else None

    def candidates(
        self, model: str, preferences: Mapping[str, Preference] | None = None, *, even_drained: bool = False
    ) -> list[Backend[T]]:
        """Returns the backends that may have `model`, best first; never empty.

        `preferences` are by backend. If all are drained, returns them with `even_drained`, else raises
        `BackendsDrained`.
        """
        members = [member for member in self._members.values() if not member.drain.drained]
        if not members:
            if not even_drained:
                raise BackendsDrained(next(iter(self._members)))
            members = list(self._members.values())
        if len(members) == 1:
            return members
        key = model_key(model)
        wanted = preferences or {}
        candidates = [self._candidate(member, key, wanted.get(member.name)) for member in members]
        return [self._members[name] for name in in_order(candidates, next(self._turns))]

    @property
    def drained(self) -> list[str]:
        """The names of the drained backends."""
        return [member.name for member in self._members.values() if member.drain.drained]

    def others(self, tried: Collection[str]) -> list[Backend[T]]:
        """Returns the backends that were not tried, such as those that lacked the model at their last probe."""
        members = self._members.values()
        return [member for member in members if member.name not in tried and not member.drain.drained]

    def had(self, backend: str, model: str) -> bool:
        """Returns whether a backend had a model when it last answered."""
        return self._had(backend, model_key(model))

    def _candidate(self, member: Backend[T], key: str, preference: Preference | None) -> BackendState:
        health = self._health(member.name)
        answers = health is not None and health.reachable
        return BackendState(
            member.name,
            rejects=member.breaker.rejects,
            reachable=None if health is None else health.reachable,
            has_model=key in health.models if health is not None and answers else None,
            resident=key in health.resident if health is not None and answers else None,
            outstanding=member.outstanding if preference is None else max(member.outstanding, preference.calls),
            tier=self._lowest if self.has_tiers and member.wants_probe() else member.tier,
            weight=member.weight,
            preference=preference,
        )
