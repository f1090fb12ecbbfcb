"""One generation through the bulkhead and the circuit breaker: admitted before, reported after, whatever happens.

The breaker comes last, so that no half-open permit waits in line; an open one is asked first, so that nobody waits in
vain.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Generation, GenerationEnd, GenerationRequest, Token
from api.ports.models import LanguageModel
from api.ports.resilience import Attempt, Breaker, Bulkhead


def generate(
    model: LanguageModel, bulkhead: Bulkhead, breaker: Breaker, request: GenerationRequest
) -> AbstractAsyncContextManager[AsyncIterator[Token | Generation]]:
    """Tokens, then the complete answer. Raises `BulkheadFull`, `BreakerOpen`, and `UpstreamError` in mid-stream too.

    Leaving the context early, or the caller's cancellation, ends the generation and counts as ignored.
    """
    return aclosing(_guarded(model, bulkhead, breaker, request))


async def _guarded(
    model: LanguageModel, bulkhead: Bulkhead, breaker: Breaker, request: GenerationRequest
) -> AsyncGenerator[Token | Generation, None]:
    breaker.check()
    async with bulkhead.permit(request.tenant, background=request.background), breaker.attempt() as attempt:
        progress = _Progress()
        try:
            async with model.stream(request) as events:
                async for event in events:
                    progress.note(event)
                    if isinstance(event, Token):
                        yield event
            generation = progress.generation()
        except UpstreamError as error:
            await _report_failure(attempt, error, progress.seconds)
            raise
        await attempt.succeeded(generation.first_token - generation.end.load_duration)
    yield generation


async def _report_failure(attempt: Attempt, error: UpstreamError, seconds: float) -> None:
    if error.row.breaker == "failure":
        await attempt.failed(seconds)


class _Progress:
    """What has come of a generation so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._parts: list[str] = []
        self._end: GenerationEnd | None = None

    def note(self, event: Token | GenerationEnd) -> None:
        """Takes the next event in."""
        if self._first_token is None:
            self._first_token = time.monotonic() - self._started
        if isinstance(event, GenerationEnd):
            self._end = event
        else:
            self._parts.append(event.text)

    @property
    def seconds(self) -> float:
        """To the first token; without one, until now. What follows may be the reader's own time."""
        return time.monotonic() - self._started if self._first_token is None else self._first_token

    def generation(self) -> Generation:
        """The complete answer. Raises `UpstreamError` where its end is missing."""
        if self._end is None:
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
        return Generation("".join(self._parts), self._end, self.seconds)
