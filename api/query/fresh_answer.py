"""A fresh answer: the prompt, the language model through bulkhead and breaker, and the fleet's cache at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing

from api.errors import UpstreamError
from api.model import Generation, GenerationRequest, Landed, Restart, Token
from api.ports.answers import Claim
from api.query import prompt
from api.query.answered import QueryObserver, Stages
from api.query.failover import Failover
from api.query.question import Query
from api.query.shared_answers import Lookup, SharedAnswers

FreshEvent = Token | Restart | Landed


class FreshAnswers:
    """Generates and stores, for whoever waits: the caller himself, a flight that others share, or nobody yet."""

    def __init__(self, backends: Failover, shared: SharedAnswers, observer: QueryObserver) -> None:
        self._backends = backends
        self._shared = shared
        self._observer = observer

    def generate(
        self,
        query: Query,
        lookup: Lookup,
        stages: Stages,
        claim: Claim | None = None,
        *,
        whole: bool,
        background: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[FreshEvent]]:
        """`Token`s, a `Restart` where they are void, and `Landed` once stored: what `claim` is for, where given.

        `stages` are those of the caller that causes it. `whole`: nobody reads along. `background` work waits behind all
        users. Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`, in mid-answer too.
        """
        messages = prompt.build(query.question, query.history, query.template, query.system)
        request = GenerationRequest(
            query.model, messages, query.options, tenant=query.tenant, background=background, whole=whole
        )
        return aclosing(self._events(request, query, lookup, stages, claim))

    async def _events(
        self, request: GenerationRequest, query: Query, lookup: Lookup, stages: Stages, claim: Claim | None
    ) -> AsyncGenerator[FreshEvent, None]:
        try:
            async with self._backends.generate(request) as generating:
                async for event in generating:
                    if isinstance(event, Generation):
                        generation = event
                        break
                    yield event
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise
        stored = await self._shared.store(query, lookup, generation, stages, claim)
        self._observer.generated(generation.end.usage, stored=stored is not None)
        yield Landed(
            generation.text,
            generation.end.model,
            generation.end.usage,
            done_reason=generation.end.done_reason,
            entry=stored.entry if stored is not None else None,
            generation=generation,
        )
