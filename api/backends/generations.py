"""Generations on whichever backend can: an answer that fails before its first token goes on elsewhere, unseen."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial

from api.backends.admission import admitted
from api.backends.failover import Failover, Policy, Terms
from api.backends.members import Backend, BackendEvents, Backends
from api.backends.thinking import Thinking
from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Generation, GenerationEnd, GenerationRequest, Restart, Thought, Token
from api.ports.models import LanguageModel
from api.ports.resilience import Retries

Event = Token | Restart | Generation


class Generations:
    """`total`: seconds for a whole answer: the wait in line and all attempts together."""

    def __init__(
        self, backends: Backends[LanguageModel], retries: Retries, total: float, events: BackendEvents
    ) -> None:
        self._failover = Failover(backends, Policy(total), retries, events)

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Tokens, then the complete answer. With `request.whole` one that broke off may begin again, after a `Restart`.

        Leaving the context early, or the caller's cancellation, ends the generation and counts as ignored. Raises
        `BulkheadFull`, `BreakerOpen`, and `UpstreamError` in mid-stream too.
        """
        events: AsyncGenerator[Event, None] = self._failover.call(
            request.model,
            partial(_attempt, request),
            timeout=request.timeout,
            retry=request.retry,
            restarts=request.whole,
        )
        return aclosing(events)


async def _attempt(
    request: GenerationRequest, backend: Backend[LanguageModel], terms: Terms
) -> AsyncGenerator[Token | Generation, None]:
    """Thoughts are kept apart, so that no caller, reader or cache takes them for the answer."""
    parts: list[str] = []
    thinking = Thinking()
    end: GenerationEnd | None = None
    async with admitted(backend, terms, request.tenant, background=request.background) as admission:
        asked = replace(request, retry=terms.retry, timeout=terms.remaining)
        async with backend.service.stream(asked) as events:
            async for event in events:
                admission.answers()
                if isinstance(event, GenerationEnd):
                    end = event
                elif isinstance(event, Thought):
                    thinking.thought(event.text)
                elif text := thinking.feed(event.text):
                    parts.append(text)
                    yield Token(text)
        if end is None:
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
        if rest := thinking.end():
            parts.append(rest)
            yield Token(rest)
        await admission.succeeded(end.load_duration)
    yield Generation("".join(parts), end, admission.seconds, thinking.thoughts)
