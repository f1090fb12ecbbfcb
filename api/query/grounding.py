"""Retrieves the passages for an answer, and builds the model's request from the question and the passages.

If the search is not possible, the model answers without passages.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from api.errors import EmbeddingUnavailable, StoreUnavailable
from api.knowledge.retrieval import PassageQuery, Retriever
from api.ports.answer_cache import RetrievalSnapshot
from api.ports.question import RAW, Query, Timings
from api.ports.telemetry import GroundingOutcome, Telemetry
from api.query import prompt
from api.query.prompt import budget, fit
from api.query.prompt_template import PromptTemplate
from api.values import GenerationRequest, Source, Vector

if TYPE_CHECKING:
    from api.query.condense import Condenser


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The result of the search for passages. `grounds` is None if there was no search.

    `keeps`: the answer may be shared. It may not if the search failed or was incomplete.
    """

    outcome: GroundingOutcome
    sources: tuple[Source, ...] = ()
    grounds: RetrievalSnapshot | None = None
    keeps: bool = True

    def is_like(self, other: Retrieval) -> bool:
        """Returns whether both have the same passages, of the same revisions."""
        return self.outcome == other.outcome and _passages(self) == _passages(other)


def _passages(grounding: Retrieval) -> list[tuple[str, int, int]]:
    return [(source.document_id, source.revision, source.chunk) for source in grounding.sources]


UNAVAILABLE = Retrieval("unavailable", keeps=False)


class PassageRetriever:
    """One worker's search for passages. `condenser` rewrites a follow-up question for the search."""

    def __init__(self, retriever: Retriever, condenser: Condenser, events: Telemetry) -> None:
        self._retriever = retriever
        self._condenser = condenser
        self._events = events

    async def ground(
        self, query: Query, vector: Vector | None, at_ms: int, timings: Timings, *, background: bool = False
    ) -> Retrieval:
        """Returns the passages for a question. Raises no errors of Redis.

        `vector`: the question's embedding, if known. `at_ms`: a recent time by the cache's clock. `background`: a
        follow-up is rewritten behind all users.
        """
        if query.template == RAW or query.top_k == 0:
            return Retrieval("not_asked")
        try:
            grounding = await self._looked_for(query, vector, at_ms, timings, background=background)
        except StoreUnavailable as error:
            self._events.store_failed(error)
            grounding = UNAVAILABLE
        except EmbeddingUnavailable:
            grounding = UNAVAILABLE
        self._events.grounded(grounding.outcome, len(grounding.sources))
        return grounding

    async def ground_again(
        self, query: Query, vector: Vector | None, before: Retrieval, at_ms: int, timings: Timings
    ) -> Retrieval:
        """Repeats the search later, but only if documents have changed in between."""
        if before.grounds is not None:
            with suppress(StoreUnavailable), timings.timed("retrieve"):
                if await self._retriever.corpus(query.tenant) == before.grounds.corpus:
                    return replace(before, grounds=replace(before.grounds, at_ms=at_ms))
        return await self.ground(query, vector, at_ms, timings)

    async def _looked_for(
        self, query: Query, vector: Vector | None, at_ms: int, timings: Timings, *, background: bool
    ) -> Retrieval:
        started = time.perf_counter()
        try:
            corpus = await self._retriever.corpus(query.tenant)
        finally:
            timings.retrieve += time.perf_counter() - started
        grounds = RetrievalSnapshot(query.top_k, query.documents, corpus, at_ms)
        if corpus.documents == 0:
            return Retrieval("no_documents", grounds=grounds)
        asked = await self._condenser.to_look_for(query, background=background)
        own = vector if asked.question == query.question and not query.history else None
        wanted = PassageQuery(asked.question, query.tenant, query.top_k, query.documents, own)
        with timings.timed("retrieve"):
            found = await self._retriever.retrieve(wanted)
        outcome: GroundingOutcome = "grounded" if found.sources else "nothing_relevant"
        return Retrieval(outcome, found.sources, grounds, keeps=found.complete)


class PromptBuilder:
    """Builds one worker's requests. `num_ctx`: the context length in tokens; None: Ollama's default."""

    def __init__(
        self, template: PromptTemplate, num_ctx: int | None, when_nothing_is_relevant: Literal["say_so", "answer"]
    ) -> None:
        self._prompts = prompt.Prompts(template)
        self._num_ctx = num_ctx
        self._when_nothing_is_relevant = when_nothing_is_relevant

    @property
    def nothing_relevant(self) -> str:
        """The answer if there are documents and none is relevant."""
        return self._prompts.nothing_relevant

    def says_so(self, grounding: Retrieval) -> bool:
        """Returns whether `nothing_relevant` is the answer."""
        return grounding.outcome == "nothing_relevant" and self._when_nothing_is_relevant == "say_so"

    def request(
        self, query: Query, sources: tuple[Source, ...], *, buffered: bool, background: bool
    ) -> tuple[GenerationRequest, tuple[Source, ...]]:
        """Returns the request and the passages that fit into it."""
        history = query.history
        if sources:
            tokens = budget(self._num_ctx, query.options.get("num_predict"))
            sources, history = fit(self._prompts, query.question, history, sources, tokens)
            messages = self._prompts.grounded(query.question, history, sources)
        elif query.template == RAW:
            messages = prompt.raw(query.question, history, query.system)
        else:
            messages = self._prompts.plain(query.question, history)
        request = GenerationRequest(
            query.model, messages, query.options, tenant=query.tenant, background=background, buffered=buffered
        )
        return request, sources
