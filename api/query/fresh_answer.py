"""A fresh answer: passages, the prompt, the language model by way of bulkhead and breaker, the cache at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Final

from api.backends.generations import Generations
from api.errors import DocumentsChanged, UpstreamError
from api.model import (
    CachedAnswer,
    Generation,
    GenerationEnd,
    GenerationRequest,
    Grounded,
    Landed,
    Restart,
    Source,
    Token,
    Usage,
)
from api.ports.answers import Claim
from api.query.answered import QueryObserver, Stages
from api.query.citations import Citations, clean
from api.query.grounding import Grounder, Grounding
from api.query.prompting import Prompting
from api.query.question import Query
from api.query.shared_answers import Lookup, SharedAnswers

LOOKS: Final = 3
"""How often an answer is checked against documents that change all the time."""

FreshEvent = Grounded | Token | Restart | Landed


class FreshAnswers:
    """Generates and stores, for whoever waits: the caller himself, a flight that others share, or nobody yet."""

    def __init__(
        self,
        backends: Generations,
        shared: SharedAnswers,
        grounder: Grounder,
        prompting: Prompting,
        observer: QueryObserver,
    ) -> None:
        self._backends = backends
        self._shared = shared
        self._grounder = grounder
        self._prompting = prompting
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
        """`Grounded`, `Token`s, a `Restart` where they are void, and `Landed` once stored: what `claim` is for.

        `stages` are those of the caller that causes it. `whole`: nobody reads along. `background` work waits behind all
        users. Raises `BulkheadFull`, `BreakerOpen` and `UpstreamError`, in mid-answer too.
        """
        return aclosing(self._events(query, lookup, stages, claim, whole=whole, background=background))

    async def _events(
        self, query: Query, lookup: Lookup, stages: Stages, claim: Claim | None, *, whole: bool, background: bool
    ) -> AsyncGenerator[FreshEvent, None]:
        if lookup.match is not None and lookup.vector is None:
            await self._shared.embed(query, lookup, stages)  # an expired answer, found to the letter, is refreshed
        grounding = await self._grounder.ground(query, lookup.vector, lookup.now_ms, stages)
        sources: tuple[Source, ...] = ()
        if self._prompting.says_so(grounding):
            generation = _said(self._prompting.nothing_relevant, query)
            yield Grounded(())
            yield Token(generation.text)
        else:
            request, sources = self._prompting.request(query, grounding.sources, whole=whole, background=background)
            async with aclosing(self._worded(request, sources)) as events:
                async for event in events:
                    if isinstance(event, Generation):
                        generation = event
                        break
                    yield event
        stored = await self._stored(query, lookup, grounding, sources, generation, stages, claim)
        self._observer.generated(generation.end.usage, stored=stored is not None)
        yield Landed(
            generation.text,
            generation.end.model,
            generation.end.usage,
            done_reason=generation.end.done_reason,
            sources=sources,
            entry=stored.entry if stored is not None else None,
            generation=generation,
        )

    async def _worded(
        self, request: GenerationRequest, sources: tuple[Source, ...]
    ) -> AsyncGenerator[Grounded | Token | Restart | Generation, None]:
        """By the language model, without citations of what is no source. Its end is the whole generation."""
        citations = Citations(len(sources))
        yield Grounded(sources)
        try:
            async with self._backends.generate(request) as generating:
                async for event in generating:
                    if isinstance(event, Generation):
                        generation = event
                        break
                    if isinstance(event, Restart):
                        citations = Citations(len(sources))
                        yield event
                        yield Grounded(sources)
                    elif text := citations.feed(event.text) if sources else event.text:
                        yield Token(text)
        except UpstreamError as error:
            self._observer.upstream_failed(error)
            raise
        if not sources:
            yield generation
            return
        if rest := citations.end():
            yield Token(rest)
        self._observer.cited(len(citations.cited), citations.removed)
        yield replace(generation, text=clean(generation.text, len(sources)))

    async def _stored(
        self,
        query: Query,
        lookup: Lookup,
        grounding: Grounding,
        sources: tuple[Source, ...],
        generation: Generation,
        stages: Stages,
        claim: Claim | None,
    ) -> CachedAnswer | None:
        """Where documents changed meanwhile, it is stored only if the same passages would be found now."""
        if not grounding.keeps:
            return None
        for _ in range(LOOKS):
            try:
                return await self._shared.store(query, lookup, grounding.grounds, sources, generation, stages, claim)
            except DocumentsChanged as changed:
                now = await self._grounder.ground_again(query, lookup.vector, grounding, changed.now_ms, stages)
                if not (now.keeps and now.is_like(grounding)):
                    return None
                grounding = now
        return None


def _said(text: str, query: Query) -> Generation:
    """An answer that needs no language model."""
    return Generation(text, GenerationEnd(query.model, "stop", Usage()), 0.0)
