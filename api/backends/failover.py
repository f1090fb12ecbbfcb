"""Failover: orders the backends, tries them in turn, and guards each call with a bulkhead and a circuit breaker.

A failed attempt has one of three results:
- another attempt for free, if the backend never began the call (no connection, or it lacks the model);
- one charged attempt within the retry budget, if the policy allows it, since the backend may have begun;
- an error for the caller otherwise, and always once a reader has received text.

A call passes the bulkhead and then the breaker, so that no half-open permit waits in a queue. A call on an open breaker
is rejected before it queues. `Generations` stream their text; one that fails before its first token moves to another
backend unnoticed.

`Thinking` separates <think> text from the answer. Ollama does so for models that it knows. Other models write their
thoughts between tags at the beginning of the text. Anywhere else such a tag is part of the answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final, Generic, TypeVar

from api.errors import BreakerOpen, BulkheadFull, RagherdError, UpstreamError, UpstreamFault
from api.ports.coordination import Attempt, Breaker, Bulkhead, Retries, TextOutput
from api.ports.inference import LanguageModel
from api.ports.telemetry import Telemetry
from api.values import BackendHealth, Generation, GenerationEnd, GenerationRequest, Retry, Source, Thought, model_key

_OPENINGS: Final = ("<think>", "<thinking>", "[think]")
_CLOSING: Final = re.compile(r"</think>|</thinking>|\[/think\]", re.IGNORECASE)
_LONGEST_CLOSING: Final = len("</thinking>")


class Thinking:
    """Separates the thoughts from one answer, piece by piece; the result does not depend on how it is cut."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._held: list[str] = []  # white space before a tag
        self._tag = ""  # the beginning of a tag, or of its end
        self._inside = False
        self.is_over = False
        """True if the rest is all answer, so nothing more needs to be fed."""

    @property
    def thoughts(self) -> str:
        """The thoughts so far."""
        return "".join(self._thoughts).strip()

    def thought(self, text: str) -> None:
        """Adds a thought that Ollama sent separately."""
        self._thoughts.append(text)

    def feed(self, text: str) -> str:
        """Returns the new part of the answer that is certain by now."""
        while text and not self.is_over:
            text = self._think(text) if self._inside else self._begin(text)
        return text

    def end(self) -> str:
        """The rest."""
        if self._inside:
            self._thoughts.append(self._tag)
            return ""
        return "" if self.is_over else self._release("")

    def _begin(self, text: str) -> str:
        """Reads until no opening tag is possible. Returns the text that is still to be read."""
        if not self._tag:
            bare = text.lstrip()
            self._held.append(text[: len(text) - len(bare)])
            text = bare
        for place, character in enumerate(text, start=1):
            self._tag += character
            if self._tag.lower() in _OPENINGS:
                self._inside, self._tag, self._held = True, "", []
                return text[place:]
            if not any(opening.startswith(self._tag.lower()) for opening in _OPENINGS):
                self.is_over = True
                return self._release(text[place:])
        return ""

    def _release(self, rest: str) -> str:
        """Ends the search for a tag. White space after thoughts is dropped with them."""
        before = "" if self._thoughts else "".join(self._held)
        return f"{before}{self._tag}{rest}"

    def _think(self, text: str) -> str:
        """Reads until the closing tag, of which a part may be yet to come."""
        text, self._tag = f"{self._tag}{text}", ""
        found = _CLOSING.search(text)
        if found is not None:
            self._thoughts.append(text[: found.start()])
            self._inside = False
            return text[found.end() :]
        begun = max(text.rfind(mark, max(0, len(text) - _LONGEST_CLOSING + 1)) for mark in "<[")
        end = begun if begun >= 0 else len(text)
        self._thoughts.append(text[:end])
        self._tag = text[end:]
        return ""


@dataclass(frozen=True, slots=True)
class BackendState:
    """The state of one backend. None: unknown (not probed yet), which does not count against it.

    `rejects`: its breaker admits no call. `outstanding`: this worker's calls to it that have not ended.
    """

    name: str
    rejects: bool = False
    reachable: bool | None = None
    has_model: bool | None = None
    resident: bool | None = None
    outstanding: int = 0


def in_order(candidates: Sequence[BackendState], turn: int) -> list[str]:
    """Returns the names, best first.

    One whose breaker rejects comes after all others, then one that did not answer, then one without the model in
    memory, then the busier one. Among equals they take turns. One without the model is left out, unless all are.
    """
    holders = [candidate for candidate in candidates if candidate.has_model is not False] or list(candidates)
    shift = turn % len(holders) if holders else 0
    taking_turns = holders[shift:] + holders[:shift]
    return [candidate.name for candidate in sorted(taking_turns, key=_reasons_against)]


def _reasons_against(candidate: BackendState) -> tuple[bool, bool, bool, int]:
    return (
        candidate.rejects,
        candidate.reachable is False,
        candidate.resident is False,
        candidate.outstanding,
    )


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Backend(Generic[T]):
    """One Ollama for one kind of call. `outstanding`: this worker's calls that have not ended."""

    name: str
    service: T
    bulkhead: Bulkhead
    breaker: Breaker
    outstanding: int = 0


class Backends(Generic[T]):
    """The backends for one kind of call. `health` returns a backend's last probe, None if it is unknown."""

    def __init__(self, members: Sequence[Backend[T]], health: Callable[[str], BackendHealth | None]) -> None:
        self._members = {member.name: member for member in members}
        self._health = health
        self._turns = count()

    def candidates(self, model: str) -> list[Backend[T]]:
        """Returns the backends that may have `model`, best first; never empty."""
        if len(self._members) == 1:
            return list(self._members.values())
        key = model_key(model)
        candidates = [self._candidate(member, key) for member in self._members.values()]
        return [self._members[name] for name in in_order(candidates, next(self._turns))]

    def _candidate(self, member: Backend[T], key: str) -> BackendState:
        health = self._health(member.name)
        answers = health is not None and health.reachable
        return BackendState(
            member.name,
            rejects=member.breaker.rejects,
            reachable=None if health is None else health.reachable,
            has_model=key in health.models if health is not None and answers else None,
            resident=key in health.resident if health is not None and answers else None,
            outstanding=member.outstanding,
        )


S = TypeVar("S")
R = TypeVar("R")
Clock = Callable[[], float]

FREE: Final = frozenset(
    {
        UpstreamFault.CONNECT_FAILED,
        UpstreamFault.CONNECT_TIMEOUT,
        UpstreamFault.CONNECTION_STALE,
        UpstreamFault.POOL_TIMEOUT,
        UpstreamFault.MODEL_NOT_FOUND,
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


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one attempt. `until`: the end of the call, on the monotonic clock; `total`: its length in seconds.

    `retry`: where the call may be repeated if it fails.
    """

    until: float
    total: float
    retry: Retry = "here"
    clock: Clock = time.monotonic

    @property
    def remaining(self) -> float:
        """Seconds left for the call."""
        return max(0.0, self.until - self.clock())


Attempting = Callable[[Backend[S], Terms], Awaitable[R]]
"""One attempt on one backend. Raises `BreakerOpen`, `BulkheadFull`, `UpstreamError`."""


class Failover(Generic[S]):
    """Makes calls on the best backend, and moves to the next after a failure."""

    def __init__(
        self,
        backends: Backends[S],
        policy: FailoverPolicy,
        retries: Retries,
        events: Telemetry,
        clock: Clock = time.monotonic,
    ) -> None:
        self._backends = backends
        self._policy = policy
        self._retries = retries
        self._events = events
        self._clock = clock

    async def call(
        self,
        model: str,
        attempt: Attempting[S, R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - only ever shortens the policy's total
        retry: Retry = "here",
        output: TextOutput | None = None,
        restarts: bool = False,
    ) -> R:
        """Returns the result of the first successful attempt. `retry` applies if there is no other backend.

        `output`: where attempts write. One that fails after its first word is not repeated, since somebody may have
        read it; but with `restarts` nobody reads along, and the output is restarted.
        Raises `BreakerOpen` or `BulkheadFull` when no backend admits the call, with the shortest wait.
        """
        total = self._policy.total if timeout is None else min(timeout, self._policy.total)
        course = _Attempts(Terms(self._clock() + total, total, retry, self._clock))
        candidates = self._backends.candidates(model)
        while candidates:
            backend = candidates.pop(0)
            if course.failure is not None and backend.breaker.rejects:
                continue
            try:
                return await attempt(backend, course.next_terms(candidates))
            except (BreakerOpen, BulkheadFull) as error:
                self._refused(error, course)
            except UpstreamError as error:
                begun = output is not None and output.begun
                if begun and not restarts:
                    raise
                self._failed(error, backend, course, last=not candidates)
                if output is not None and begun:
                    output.restart()
        raise course.verdict()

    def _refused(self, error: BreakerOpen | BulkheadFull, course: _Attempts) -> None:
        waited_in_vain = isinstance(error, BulkheadFull) and error.reason == "deadline"
        if waited_in_vain and (not self._policy.waits_again or not course.terms.remaining):
            raise error
        course.refusals.append(error)

    def _failed(self, error: UpstreamError, backend: Backend[S], course: _Attempts, *, last: bool) -> None:
        """Records a failure after which another backend may be tried. Otherwise raises it."""
        if error.fault not in FREE and not self._charge(error, course):
            raise error
        course.failed(error)
        if not last:
            self._events.failed_over(backend.name, error)

    def _charge(self, error: UpstreamError, course: _Attempts) -> bool:
        """Returns whether the charged attempt is still available; if so, charges it."""
        if error.fault not in self._policy.charged or course.spent or not course.terms.remaining:
            return False
        course.spent = self._retries.spend()
        return course.spent


@dataclass(slots=True)
class _Attempts:
    """The attempts of one call so far. `terms`: those of the call."""

    terms: Terms
    failure: UpstreamError | None = None
    spent: bool = False
    refusals: list[BreakerOpen | BulkheadFull] = field(default_factory=list)

    def next_terms(self, others: list[Backend[S]]) -> Terms:
        """The retry terms of the next attempt: the adapter may retry if there is no other backend."""
        elsewhere = any(not other.breaker.rejects for other in others)
        retry: Retry = "spent" if self.spent else "elsewhere" if elsewhere else self.terms.retry
        self.spent = self.spent or retry == "here"
        return replace(self.terms, retry=retry)

    def failed(self, error: UpstreamError) -> None:
        """Keeps the most informative failure; a missing model on one backend is the least."""
        if self.failure is None or self.failure.fault is UpstreamFault.MODEL_NOT_FOUND:
            self.failure = error

    def verdict(self) -> RagherdError:
        """Returns the error for the client if no backend answered."""
        if self.failure is not None and self.failure.fault is not UpstreamFault.MODEL_NOT_FOUND:
            return self.failure
        if self.refusals:
            return min(self.refusals, key=lambda refusal: refusal.retry_after)
        assert self.failure is not None, "there is at least one backend"
        return self.failure


class Admission:
    """An admitted call. Its caller reports the first event and the success."""

    def __init__(self, attempt: Attempt, terms: Terms) -> None:
        self._attempt = attempt
        self._terms = terms
        self._allowed = terms.remaining
        self._started = time.monotonic()
        self._first: float | None = None
        self.answered = False

    @property
    def seconds(self) -> float:
        """Seconds until the first event, or until now without one. A slow reader may cause later delays."""
        return time.monotonic() - self._started if self._first is None else self._first

    def answers(self) -> None:
        """Records the first event."""
        if self._first is None:
            self._first = time.monotonic() - self._started
        self.answered = True

    async def succeeded(self, load_duration: float) -> None:
        """Reports success to the breaker, without the model's load time, which says nothing about Ollama's health."""
        await self._attempt.succeeded(max(0.0, self.seconds - load_duration))

    async def failed(self, error: UpstreamError) -> None:
        """Reports a failure to the breaker if it counts against Ollama."""
        if speaks_against_ollama(error, self._allowed, self._terms.total):
            await self._attempt.failed(self.seconds)


def speaks_against_ollama(error: UpstreamError, allowed: float, total: float) -> bool:
    """`allowed`: the seconds of `total` that waits and earlier attempts had left to this call.

    A call that ran out of time although it had less than half of it was late for other reasons.
    """
    was_cut_short = error.fault is UpstreamFault.TOTAL_TIMEOUT and allowed < total / 2
    return error.row.breaker == "failure" and not was_cut_short


@asynccontextmanager
async def admitted(
    backend: Backend[Any], terms: Terms, tenant: str, *, background: bool = False
) -> AsyncIterator[Admission]:
    """Guards one call. Raises `BreakerOpen` and `BulkheadFull`; the breaker ignores a call that is cancelled."""
    within = terms.remaining
    backend.breaker.check()
    permit = backend.bulkhead.permit(tenant, background=background, within=within)
    backend.outstanding += 1
    try:
        async with permit, backend.breaker.attempt() as attempt:
            admission = Admission(attempt, terms)
            try:
                yield admission
            except UpstreamError as error:
                await admission.failed(error)
                raise
    finally:
        backend.outstanding -= 1


class Unread:
    """An `AnswerOutput` that nobody reads."""

    def __init__(self) -> None:
        self.begun = False

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Does nothing: nobody reads the sources."""

    async def write(self, text: str) -> None:
        """Records only that there was text."""
        self.begun = True

    def restart(self) -> None:
        """Resets `begun`."""
        self.begun = False


class Generations:
    """Generations with failover. `total`: seconds for an answer, including queueing and all attempts."""

    def __init__(self, backends: Backends[LanguageModel], retries: Retries, total: float, events: Telemetry) -> None:
        self._failover = Failover(backends, FailoverPolicy(total), retries, events)

    async def generate(self, request: GenerationRequest, output: TextOutput) -> Generation:
        """Writes the text as it arrives. With `request.buffered` an answer that broke off may restart.

        The caller's cancellation ends the generation and counts as ignored. Raises `BulkheadFull`, `BreakerOpen`, and
        `UpstreamError` in mid-answer too.
        """
        return await self._failover.call(
            request.model,
            partial(_attempt, request, output),
            timeout=request.timeout,
            retry=request.retry,
            output=output,
            restarts=request.buffered,
        )


async def _attempt(
    request: GenerationRequest, output: TextOutput, backend: Backend[LanguageModel], terms: Terms
) -> Generation:
    """Keeps thoughts out of the answer, so that no caller, reader or cache gets them."""
    parts: list[str] = []
    thinking = Thinking()
    end: GenerationEnd | None = None
    async with admitted(backend, terms, request.tenant, background=request.background) as admission:
        asked = replace(request, retry=terms.retry, timeout=terms.remaining)
        async with backend.service.stream(asked) as events:
            async for event in events:
                if not admission.answered:
                    admission.answers()
                if isinstance(event, GenerationEnd):
                    end = event
                elif isinstance(event, Thought):
                    thinking.thought(event.text)
                elif text := event.text if thinking.is_over else thinking.feed(event.text):
                    parts.append(text)
                    await output.write(text)
        if end is None:
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
        if not thinking.is_over and (rest := thinking.end()):
            parts.append(rest)
            await output.write(rest)
        await admission.succeeded(end.load_duration)
    return Generation("".join(parts), end, admission.seconds, thinking.thoughts, backend.name)
