"""Failover: tries the backends in turn, and guards each call with a bulkhead and a circuit breaker.

A failed attempt has one of three results:
- another attempt for free, if the backend never began the call (no connection, or it lacks the model);
- one charged attempt within the retry budget, if the policy allows it, since the backend may have begun;
- an error for the caller otherwise, and always once a reader has received text.

With tiers, a call waits for a permit only when no tier has a free one. It passes the bulkhead and then the breaker, so
that no half-open permit waits in a queue. A call on an open breaker is rejected before it queues. `Generations` stream
their text; one that fails before its first token moves to another backend unnoticed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from api.backends.affinity import PrefixAffinity
from api.backends.choice import (
    FREE,
    LONG_READING,
    UNREACHABLE,
    Backend,
    Backends,
    Clock,
    FailoverPolicy,
    Preference,
    Terms,
)
from api.backends.thinking import Thinking
from api.errors import (
    BackendsDrained,
    BreakerOpen,
    BulkheadFull,
    PromptTooLong,
    RagherdError,
    UpstreamError,
    UpstreamFault,
)
from api.ports.coordination import Attempt, Retries, TextOutput
from api.ports.inference import LanguageModel
from api.ports.telemetry import Telemetry
from api.values import Generation, GenerationEnd, GenerationRequest, Priority, QueuePlace, Retry, Source, Thought

S = TypeVar("S")
R = TypeVar("R")

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
        preferences: Mapping[str, Preference] | None = None,
    ) -> R:
        """Returns the result of the first successful attempt. `retry` applies if there is no other backend.

        `output`: where attempts write. One that fails after its first word is not repeated, since somebody may have
        read it; but with `restarts` nobody reads along, and the output is restarted. `preferences`: by backend. With
        them or with tiers, a call waits only if no backend has a free permit. Raises `BreakerOpen` or `BulkheadFull`
        when no backend admits the call, with the shortest wait.
        """
        total = self._policy.total if timeout is None else min(timeout, self._policy.total)
        queues = not (self._backends.has_tiers or preferences)
        terms = Terms(self._clock() + total, total, retry, self._clock, queues=queues)
        course: _Attempts[S] = _Attempts(terms)
        candidates = self._backends.candidates(model, preferences)
        try:
            while candidates or (candidates := self._once_more(model, course)):
                backend = candidates.pop(0)
                if course.has_failed and backend.breaker.rejects:
                    course.unreachable.append(backend.name)
                    continue
                try:
                    return await attempt(backend, course.next_terms(candidates))
                except (BreakerOpen, BulkheadFull) as error:
                    if self._ends_call(error, course):
                        raise
                    course.refused(error, backend)
                except UpstreamError as error:
                    begun = output is not None and output.begun
                    if (begun and not restarts) or not self._may_go_on(error, course):
                        raise
                    course.failed(error, backend.name)
                    if candidates:
                        self._events.failed_over(backend.name, error)
                    if output is not None and begun:
                        output.restart()
            if course.absent is not None and course.is_clear and self._may_be_on(self._backends.drained, model):
                raise BackendsDrained(self._backends.drained[0])
            raise course.verdict(others_may_have_it=self._may_be_on(course.unreachable, model))
        finally:
            del course  # it has the errors, and their tracebacks refer to this frame

    def _once_more(self, model: str, course: _Attempts[S]) -> list[Backend[S]]:
        """Returns the backends to try after all candidates.

        First those without a free permit, to wait there: the others have none either. If no candidate can be
        reached, those that lacked the model at their last probe.
        """
        if course.full:
            waiting, course.full = course.full, []
            course.terms = replace(course.terms, queues=True)
            return waiting
        if course.reached_none and not self._may_be_on(course.unreachable, model):
            course.asks_all = True
            return self._backends.others(course.unreachable)
        return []

    def _may_be_on(self, backends: Iterable[str], model: str) -> bool:
        """Returns whether one of these backends had the model when it last answered."""
        return any(self._backends.had(name, model) for name in backends)

    def _ends_call(self, error: BreakerOpen | BulkheadFull, course: _Attempts[S]) -> bool:
        """Returns whether the call waited in vain, and may not wait for another backend."""
        waited_in_vain = isinstance(error, BulkheadFull) and error.reason == "deadline"
        return waited_in_vain and (not self._policy.waits_again or not course.terms.remaining)

    def _may_go_on(self, error: UpstreamError, course: _Attempts[S]) -> bool:
        """Returns whether another backend may be tried after a failure."""
        return error.fault in FREE or self._charge(error, course)

    def _charge(self, error: UpstreamError, course: _Attempts[S]) -> bool:
        """Returns whether the charged attempt is still available; if so, charges it."""
        if error.fault not in self._policy.charged or course.spent or not course.terms.remaining:
            return False
        course.spent = self._retries.spend()
        return course.spent


@dataclass(slots=True)
class _Attempts(Generic[S]):
    """The attempts of one call so far. `terms`: those of the call. `full`: the backends without a free permit."""

    terms: Terms
    failure: UpstreamError | None = None
    absent: UpstreamError | None = None
    unreachable: list[str] = field(default_factory=list)
    is_clear: bool = True
    """True if each backend so far lacked the model or could not be reached."""
    asks_all: bool = False
    spent: bool = False
    refusals: list[BreakerOpen | BulkheadFull] = field(default_factory=list)
    full: list[Backend[S]] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """True if a backend failed in another way than by lacking the model."""
        return self.failure is not None and self.failure.fault is not UpstreamFault.MODEL_NOT_FOUND

    @property
    def reached_none(self) -> bool:
        """True if no backend could be reached and not all have been asked."""
        return bool(self.unreachable) and self.is_clear and self.absent is None and not self.asks_all

    def next_terms(self, others: list[Backend[S]]) -> Terms:
        """The retry terms of the next attempt: the adapter may retry if there is no other backend."""
        elsewhere = any(not other.breaker.rejects for other in others)
        retry: Retry = "spent" if self.spent else "elsewhere" if elsewhere else self.terms.retry
        self.spent = self.spent or retry == "here"
        return self.terms if retry == self.terms.retry else replace(self.terms, retry=retry)

    def refused(self, error: BreakerOpen | BulkheadFull, backend: Backend[S]) -> None:
        """Keeps a refusal, or the backend, if a permit may become free there."""
        if isinstance(error, BulkheadFull) and error.reason == "no_permit":
            self.full.append(backend)
            return
        if isinstance(error, BreakerOpen) and not isinstance(error, BackendsDrained):
            self.unreachable.append(backend.name)
        else:
            self.is_clear = False
        self.refusals.append(error)

    def failed(self, error: UpstreamError, backend: str) -> None:
        """Keeps the most informative failure; a missing model on one backend is the least."""
        if error.fault is UpstreamFault.MODEL_NOT_FOUND:
            self.absent = self.absent or error
        elif error.fault in UNREACHABLE:
            self.unreachable.append(backend)
        else:
            self.is_clear = False
        if self.failure is None or self.failure.fault is UpstreamFault.MODEL_NOT_FOUND:
            self.failure = error

    def verdict(self, *, others_may_have_it: bool) -> RagherdError:
        """Returns the error for the client if no backend answered.

        If every backend that answers lacks the model, that is 404, and it names the backends that do not answer.
        """
        if self.absent is not None and self.unreachable and self.is_clear and not others_may_have_it:
            detail = f"{self.absent.detail} Not asked, because they cannot be reached: {', '.join(self.unreachable)}."
            return UpstreamError(UpstreamFault.MODEL_NOT_FOUND, detail, unreachable=self.unreachable)
        if self.failure is not None and self.has_failed:
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
        self.reads_on: tuple[str, float] | None = None
        """If the call was given up: its model, and the seconds that Ollama still reads the prompt."""
        self.is_excused = False
        """True if its failure says nothing about Ollama."""

    @property
    def seconds(self) -> float:
        """Seconds until the first event, or until now without one. A slow reader may cause later delays."""
        return time.monotonic() - self._started if self._first is None else self._first

    def answers(self) -> None:
        """Records the first event."""
        if self._first is None:
            self._first = time.monotonic() - self._started
        self.answered = True

    async def succeeded(self, excused: float) -> None:
        """Reports success to the breaker.

        `excused`: seconds that say nothing about Ollama's health: loading the model, reading a long prompt.
        """
        await self._attempt.succeeded(max(0.0, self.seconds - excused))

    async def failed(self, error: UpstreamError) -> None:
        """Reports a failure to the breaker if it counts against Ollama."""
        if not self.is_excused and speaks_against_ollama(error, self._allowed, self._terms.total):
            await self._attempt.failed(self.seconds)


def speaks_against_ollama(error: UpstreamError, allowed: float, total: float) -> bool:
    """`allowed`: the seconds of `total` that waits and earlier attempts had left to this call.

    A call that ran out of time although it had less than half of it was late for other reasons.
    """
    was_cut_short = error.fault is UpstreamFault.TOTAL_TIMEOUT and allowed < total / 2
    return error.row.breaker == "failure" and not was_cut_short


@asynccontextmanager
async def admitted(
    backend: Backend[Any], terms: Terms, tenant: str, place: QueuePlace | None = None
) -> AsyncIterator[Admission]:
    """Guards one call. Raises `BreakerOpen` and `BulkheadFull`; the breaker ignores a call that is cancelled."""
    backend.breaker.check()
    permit = backend.bulkhead.permit(tenant, place=place, within=terms.remaining, queues=terms.queues)
    backend.outstanding += 1
    try:
        async with AsyncExitStack() as held:
            await held.enter_async_context(permit)
            async with backend.breaker.attempt() as attempt:
                if backend.drain.drained:  # drained while the call waited for its permit
                    raise BackendsDrained(backend.name)
                admission = Admission(attempt, terms)
                try:
                    yield admission
                except UpstreamError as error:
                    await admission.failed(error)
                    raise
                finally:
                    if admission.reads_on is not None and backend.overdue is not None:
                        backend.overdue.keep(held.pop_all(), *admission.reads_on)
    finally:
        backend.outstanding -= 1


class Unread:
    """An `AnswerOutput` that nobody reads. `priority`: that of the generation."""

    def __init__(self, priority: Priority = Priority.BACKGROUND) -> None:
        self.begun = False
        self.place = QueuePlace(priority)

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Does nothing: nobody reads the sources."""

    async def write(self, text: str) -> None:
        """Records only that there was text."""
        self.begun = True

    def restart(self) -> None:
        """Resets `begun`."""
        self.begun = False


class Generations:
    """Generations with failover. `total`: seconds for an answer, including queueing and all attempts.

    `max_prompt`: the most tokens of a prompt, as estimated. `affinity`: prefers backends that know a prompt.
    """

    def __init__(
        self,
        backends: Backends[LanguageModel],
        retries: Retries,
        total: float,
        events: Telemetry,
        max_prompt: int | None = None,
        affinity: PrefixAffinity | None = None,
    ) -> None:
        self._max_prompt = max_prompt
        self._affinity = affinity
        self._backends = backends
        self._failover = Failover(backends, FailoverPolicy(total), retries, events)

    def ask_early(self, tenant: str, place: QueuePlace) -> None:
        """Asks for the permit of a generation that is probably made soon, if it is clear where; no I/O here."""
        backend = self._backends.only
        if backend is not None and not backend.breaker.rejects:
            backend.bulkhead.ask_early(tenant, place)

    async def generate(self, request: GenerationRequest, output: TextOutput) -> Generation:
        """Writes the text as it arrives. With `request.buffered` an answer that broke off may restart.

        The caller's cancellation ends the generation and counts as ignored. Raises `BulkheadFull`, `BreakerOpen`, and
        `UpstreamError` in mid-answer too, and `PromptTooLong` before anything is sent.
        """
        if self._max_prompt is not None and request.prompt_tokens > self._max_prompt:
            raise PromptTooLong(request.prompt_tokens, self._max_prompt)
        affinity = self._affinity
        prompt = await affinity.look_up(request) if affinity is not None and self._backends.has_choice else None
        generation = await self._failover.call(
            request.model,
            partial(_attempt, request, output),
            timeout=request.timeout,
            retry=request.retry,
            output=output,
            restarts=request.buffered,
            preferences=prompt.preferences if prompt is not None else None,
        )
        if affinity is not None and prompt is not None:
            affinity.answered(prompt, request, generation)
        return generation


@contextmanager
def _watched(request: GenerationRequest, backend: Backend[LanguageModel], admission: Admission) -> Iterator[None]:
    """Notes if the call is given up while Ollama reads the prompt, or before the end of an answer that took too long.

    A client may ask for an answer without end. If tokens came until the deadline, Ollama works. If it was silent, the
    next token shows whether it does.
    """
    try:
        yield
    except (UpstreamError, asyncio.CancelledError) as error:
        is_silent = request.forwarded is not None and request.forwarded.is_silent
        if isinstance(error, UpstreamError) and error.fault is UpstreamFault.TOTAL_TIMEOUT and is_silent:
            admission.is_excused = backend.overdue is not None
            admission.reads_on = (request.model, 0.0)
        elif request.forwarded is not None and admission.answered:
            admission.is_excused = isinstance(error, UpstreamError) and error.fault is UpstreamFault.TOTAL_TIMEOUT
        elif backend.overdue is not None and not admission.answered:
            rest = backend.overdue.reads_on(request, error, admission.seconds)
            admission.reads_on = None if rest is None else (request.model, rest)
        raise


async def _attempt(
    request: GenerationRequest, output: TextOutput, backend: Backend[LanguageModel], terms: Terms
) -> Generation:
    """Keeps thoughts out of the answer, so that no caller, reader or cache gets them.

    The answer to a forwarded request stays as it is.
    """
    parts: list[str] = []
    thinking = Thinking()
    thinking.is_over = request.forwarded is not None
    end: GenerationEnd | None = None
    async with admitted(backend, terms, request.tenant, request.place) as admission:
        asked = replace(request, retry=terms.retry, timeout=terms.remaining)
        with _watched(asked, backend, admission):
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
        reading = end.prompt_eval_duration if end.prompt_eval_duration >= LONG_READING else 0.0
        # Where Ollama is silent, nobody knows when the first token came, so the call counts as fast.
        is_silent = request.forwarded is not None and request.forwarded.is_silent
        await admission.succeeded(admission.seconds if is_silent else end.load_duration + reading)
    return Generation("".join(parts), end, admission.seconds, thinking.thoughts, backend.name)
